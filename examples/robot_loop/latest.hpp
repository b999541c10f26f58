// Hands the newest frame from the camera's thread to the loop: what is not taken before the next one comes is dropped.
// Three frames are enough for neither to wait for the other: one is written, one is ready, one is read.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "camera.hpp"

class Latest {
 public:
  // For the camera's thread: the frame to write to, and that it is written.
  Frame& writing() { return frames_[writing_]; }
  void publish() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::swap(writing_, ready_);
      dropped_ += fresh_;
      fresh_ = true;
      ++came_;
    }
    changed_.notify_one();
  }
  void close() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_one();
  }

  // For the loop: the newest frame, which stays as it is until the next call; null after close, or when none came for
  // as long as that.
  const Frame* take(std::chrono::milliseconds patience) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, patience, [this] { return fresh_ || closed_; });
    if (!fresh_) return nullptr;
    std::swap(reading_, ready_);
    fresh_ = false;
    return &frames_[reading_];
  }
  bool closed() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return closed_ && !fresh_;
  }
  // Frames that were published, and those of them that were not taken; after the camera's thread has ended.
  long came() const { return came_; }
  long dropped() const { return dropped_ + fresh_; }

 private:
  Frame frames_[3];
  int writing_ = 0, ready_ = 1, reading_ = 2;
  bool fresh_ = false, closed_ = false;
  long came_ = 0, dropped_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};
