// Instruction sets: which were built, which this machine and its operating system can run, and which one is in use.
//
// Every op's vector code is one source, `<op>_kernels.cpp`, compiled once an instruction set into a namespace of that
// name. The op's header declares a struct of function pointers and `DVT_DECLARE_KERNELS(Struct, name)`; `name()` then
// gives the table of the active set. The choice is made once, from DVT_FAST_ISA or the best that runs, and it never
// changes silently.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"

namespace dvt {

enum class Isa { generic = 0, avx2, avx512, neon };

const char* isa_name(Isa isa);
std::vector<Isa> built_isas();
// Whether this machine can run `isa`; if not, `why` (when not null) says what is missing.
bool isa_runs(Isa isa, std::string* why = nullptr);
// The same by name, as a status.
Status check_isa(const std::string& name);

// The set in use. The first call reads DVT_FAST_ISA; a value that cannot be honoured is kept as an error that
// `isa_status()` returns, and every entry point of the bindings checks it, so nothing runs on another set instead.
Isa active_isa();
Status isa_status();
// Forces a set at run time (tests and benchmarks); not to be called while kernels run.
Status set_isa(const std::string& name);

}  // namespace dvt

#if defined(DVT_HAVE_AVX2)
#define DVT_IF_AVX2(x) x
#else
#define DVT_IF_AVX2(x)
#endif
#if defined(DVT_HAVE_AVX512)
#define DVT_IF_AVX512(x) x
#else
#define DVT_IF_AVX512(x)
#endif
#if defined(DVT_HAVE_NEON)
#define DVT_IF_NEON(x) x
#else
#define DVT_IF_NEON(x)
#endif

// Use inside namespace dvt.
#define DVT_DECLARE_KERNELS(Struct, name)                       \
  namespace generic {                                           \
  extern const Struct name;                                     \
  }                                                             \
  DVT_IF_AVX2(namespace avx2 { extern const Struct name; })     \
  DVT_IF_AVX512(namespace avx512 { extern const Struct name; }) \
  DVT_IF_NEON(namespace neon { extern const Struct name; })     \
  inline const Struct& name() {                                 \
    switch (active_isa()) {                                     \
      DVT_IF_AVX2(case Isa::avx2 : return avx2::name;)          \
      DVT_IF_AVX512(case Isa::avx512 : return avx512::name;)    \
      DVT_IF_NEON(case Isa::neon : return neon::name;)          \
      default: return generic::name;                            \
    }                                                           \
  }
