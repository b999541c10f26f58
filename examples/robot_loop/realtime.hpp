// What a real-time thread asks of Linux; the README says when. The library does none of this by itself. Each returns
// whether the system allowed it, and says so where not.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

inline bool allowed(const char* what, int error) {
  if (error != 0) std::fprintf(stderr, "%s: %s\n", what, std::strerror(error));
  return error == 0;
}

// Keeps all memory, also what is allocated later, from being paged out or being given only at its first use.
inline bool lock_memory() { return allowed("mlockall", ::mlockall(MCL_CURRENT | MCL_FUTURE) == 0 ? 0 : errno); }

// The calling thread, and the threads that it starts from now on, run on these cores only.
inline bool pin_to(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(core, &set);
  return allowed("pinning", pthread_setaffinity_np(pthread_self(), sizeof set, &set));
}

// The calling thread, and the threads that it starts from now on, run before all ordinary ones.
inline bool run_first(int priority) {
  sched_param parameters{};
  parameters.sched_priority = priority;
  return allowed("SCHED_FIFO", pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters));
}
