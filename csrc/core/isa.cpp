#include "core/isa.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace dvt {
namespace {

struct Features {
  bool avx2_cpu = false, avx2_os = false, avx512_cpu = false, avx512_os = false;
  bool neon = false;
};

Features detect() {
  Features f;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool fma = c & (1u << 12), osxsave = c & (1u << 27), avx = c & (1u << 28), f16c = c & (1u << 29);
  // XCR0 says which registers the operating system saves: without it a supported instruction still faults.
  unsigned xcr0 = 0, xcr0_high = 0;
  if (osxsave) __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  f.avx2_os = (xcr0 & 0x6) == 0x6;
  f.avx512_os = (xcr0 & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2_cpu = avx && fma && f16c && (b & (1u << 5));
  const unsigned f_dq_bw_vl = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
  f.avx512_cpu = f.avx2_cpu && (b & f_dq_bw_vl) == f_dq_bw_vl;
#elif defined(__aarch64__) && defined(__linux__)
  f.neon = getauxval(AT_HWCAP) & HWCAP_ASIMD;
#elif defined(__aarch64__)
  f.neon = true;  // of every processor that runs another system
#endif
  return f;
}

struct Selection {
  Isa isa = Isa::generic;
  Status status;
};

bool parse(const std::string& name, Isa* isa) {
  for (Isa candidate : {Isa::generic, Isa::avx2, Isa::avx512, Isa::neon})
    if (name == isa_name(candidate)) {
      *isa = candidate;
      return true;
    }
  return false;
}

Status find(const std::string& name, Isa* isa) {
  if (!parse(name, isa))
    return invalid_argument("DVT_FAST_ISA must be generic, avx2, avx512 or neon, got '", name, "'");
  std::string why;
  if (!isa_runs(*isa, &why))
    return Status(StatusCode::unsupported, format("instruction set '", name, "' cannot be used here: ", why));
  return Status();
}

Selection initial() {
  Selection s;
  const char* forced = std::getenv("DVT_FAST_ISA");
  if (forced && *forced) {
    Isa isa = Isa::generic;
    s.status = find(forced, &isa);
    s.isa = s.status.ok() ? isa : Isa::generic;
    return s;
  }
  for (Isa isa : built_isas())
    if (isa_runs(isa)) s.isa = isa;
  return s;
}

Selection& selection() {
  static Selection s = initial();
  return s;
}

// Read on every kernel call, so kept apart from the string beside it; -1 until the first use.
std::atomic<int> active{-1};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::neon: return "neon";
    default: return "generic";
  }
}

std::vector<Isa> built_isas() {
  std::vector<Isa> isas{Isa::generic};
  DVT_IF_AVX2(isas.push_back(Isa::avx2);)
  DVT_IF_AVX512(isas.push_back(Isa::avx512);)
  DVT_IF_NEON(isas.push_back(Isa::neon);)
  return isas;
}

bool isa_runs(Isa isa, std::string* why) {
  static const Features f = detect();
  bool built = false;
  for (Isa b : built_isas()) built = built || b == isa;
  std::string reason;
  if (!built) {
    reason = "this build does not contain it";
  } else if (isa == Isa::avx2 && !f.avx2_cpu) {
    reason = "the processor lacks AVX2, FMA or F16C";
  } else if (isa == Isa::avx2 && !f.avx2_os) {
    reason = "the operating system does not save the AVX registers";
  } else if (isa == Isa::avx512 && !f.avx512_cpu) {
    reason = "the processor lacks AVX-512 F, DQ, BW or VL";
  } else if (isa == Isa::avx512 && !f.avx512_os) {
    reason = "the operating system does not save the AVX-512 registers";
  } else if (isa == Isa::neon && !f.neon) {
    reason = "the processor lacks Advanced SIMD";
  }
  if (why) *why = reason;
  return reason.empty();
}

Isa active_isa() {
  int isa = active.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(selection().isa);
    active.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

Status check_isa(const std::string& name) {
  Isa isa = Isa::generic;
  return find(name, &isa);
}

Status isa_status() { return selection().status; }

Status set_isa(const std::string& name) {
  Isa isa = Isa::generic;
  DVT_RETURN_IF_ERROR(find(name, &isa));
  selection() = Selection{isa, Status()};
  active.store(static_cast<int>(isa), std::memory_order_relaxed);
  return Status();
}

}  // namespace dvt
