// What is said of a kernel that cannot go on.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "scheduler.h"

namespace emulator {
namespace {

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

// The name of a function that its file tells only to debuggers: of an anonymous namespace, or hidden. `offset`: from
// where the file is loaded.
std::string name_in_file(const char* path, uintptr_t offset) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto at = [&](size_t from, size_t count, size_t size) {
    return from <= bytes.size() && count <= (bytes.size() - from) / size ? bytes.data() + from : nullptr;
  };
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(at(0, 1, sizeof(ElfW(Ehdr))));
  if (!header || bytes.compare(0, SELFMAG, ELFMAG)) return "";
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(at(header->e_shoff, header->e_shnum, sizeof(ElfW(Shdr))));
  for (size_t s = 0; sections && s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB || sections[s].sh_link >= header->e_shnum) continue;
    const size_t count = sections[s].sh_size / sizeof(ElfW(Sym));
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(at(sections[s].sh_offset, count, sizeof(ElfW(Sym))));
    const auto& names = sections[sections[s].sh_link];
    for (size_t i = 0; symbols && i < count; ++i)
      if (symbols[i].st_value == offset && (symbols[i].st_info & 15) == STT_FUNC &&
          symbols[i].st_name < names.sh_size && at(names.sh_offset, names.sh_size, 1))
        return bytes.data() + names.sh_offset + symbols[i].st_name;
  }
  return "";
}

}  // namespace

std::string function_name(const void* function) {
  Dl_info info;
  if (!dladdr(function, &info)) return "(unknown)";
  std::string name = info.dli_sname && info.dli_saddr == function
                         ? info.dli_sname
                         : name_in_file(info.dli_fname, reinterpret_cast<uintptr_t>(function) -
                                                            reinterpret_cast<uintptr_t>(info.dli_fbase));
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  if (text) name = text;
  std::free(text);
  const std::string anonymous = "(anonymous namespace)::";
  for (size_t i; (i = name.find(anonymous)) != std::string::npos;) name.erase(i, anonymous.size());
  name = name.substr(0, name.find('('));  // without parameters
  return name.empty() ? "(unknown)" : name;
}

void Scheduler::fail(cudaError_t error, const std::string& message) {
  std::string where = "kernel " + function_name(kernel_.function);
  where += ", block " + text_of(block().index);
  where += deferred_block_ ? ", asynchronous operation" : ", thread " + text_of(running_->index);
  failure_ = {error, where + ": " + message};
  deferred_block_ = nullptr;
  if (!running_) throw Abandoned{};
  switch_fiber(running_->fiber, host_);
  __builtin_unreachable();
}

// Lanes that wait for the same are named together.
void Scheduler::deadlock() {
  std::string message = "threads wait for others that never come:";
  unsigned lines = 0;
  for (const auto& block : blocks_)
    for (Warp& warp : block->warps)
      for (uint32_t rest = warp.alive; rest && lines < 24;) {
        const Thread& first = warp.thread(static_cast<unsigned>(__builtin_ctz(rest)));
        uint32_t same = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
          if (rest >> lane & 1 && warp.thread(lane).waits_for == first.waits_for &&
              warp.thread(lane).waits_mask == first.waits_mask && warp.thread(lane).waits_key == first.waits_key)
            same |= 1u << lane;
        rest &= ~same;
        char line[200];
        std::snprintf(line, sizeof line, "\n  block %s warp %u: lanes 0x%08x at %s", text_of(block->index).c_str(),
                      warp.first / 32, same, first.waits_for ? first.waits_for : "nothing");
        message += line;
        if (first.waits_mask) {
          std::snprintf(line, sizeof line, " of lanes 0x%08x", first.waits_mask);
          message += line;
        }
        if (++lines == 24) message += "\n  ...";
      }
  fail(cudaErrorLaunchFailure, message);
}

}  // namespace emulator
