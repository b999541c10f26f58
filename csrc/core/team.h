// The threads of one session: they sleep between frames, and work through a frame together.
//
// Unlike the pool of threads.h, a team belongs to one caller, so that its frames wait for nobody else's, and its
// members meet at barriers inside one task, for much less than a wake-up costs. Nothing here allocates after the
// constructor.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace dvt {

class Team {
 public:
  // Starts size - 1 threads; the caller of `run` is the last member. Throws std::system_error.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // False in a process that was forked from the team's own: its threads are not there. Such a team can neither run nor
  // be destroyed.
  bool in_this_process() const;

  // Calls task(member) on every member at once, 0 being the caller, and returns when all are done. The task must not
  // throw. One call at a time.
  template <class Task>
  void run(Task&& task) {
    using T = std::remove_reference_t<Task>;
    run([](void* context, int member) { (*static_cast<T*>(context))(member); },
        const_cast<void*>(static_cast<const void*>(&task)));
  }

  // Inside a task, called by every member: waits until all have come, and what each wrote is seen by all.
  void barrier();
  // Inside a task: hands out 0, 1, 2, ... once each, to whoever asks next. Starts anew after each barrier.
  int64_t claim() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  using Function = void (*)(void* context, int member);
  void run(Function function, void* context);
  void member_loop(int member);
  void stop();

  const int size_;
  const int process_;
  std::atomic<int64_t> next_{0};
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> phase_{0};
  std::atomic<uint32_t> frame_{0};
  std::atomic<int> working_{0};
  Function function_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace dvt
