// A perception loop: frames at a camera's rate, the newest one through the engine, and how old its features are.
//
//   robot_loop ENGINE_FILE --camera synthetic --rate 30 --seconds 10
//
// Frames arrive by a schedule that does not wait for the loop, and ages count from the scheduled arrival, so that a
// late frame cannot hide (open loop). After the first frame the loop neither allocates nor throws.
#include <getopt.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dvt_fast.hpp>
#include <string>
#include <thread>
#include <vector>

#include "camera.hpp"
#include "latest.hpp"
#include "realtime.hpp"
#include "timing.hpp"

namespace {

constexpr const char* kUsage =
    "usage: robot_loop ENGINE_FILE [options]\n"
    "  --camera WHAT     synthetic (default); a folder of .ppm files; a .ppm file; raw RGB in a file, or - for a pipe\n"
    "  --size WxH        of synthetic and raw frames; default 640x480\n"
    "  --rate HZ         frames a second; 0: as they come, for a live pipe; default 30\n"
    "  --seconds S       how long; default 10; 0: until the camera ends\n"
    "  --deadline MS     when features are too old; default one period (at rate 0: 33 ms)\n"
    "  --threads N       of the engine; default 1\n"
    "  --lock-memory     mlockall\n"
    "  --cores A,B,...   pin the loop and the engine's threads\n"
    "  --fifo PRIORITY   SCHED_FIFO for the loop and the engine's threads\n";

struct Options {
  std::string engine, camera = "synthetic";
  int width = 640, height = 480, threads = 1, fifo = 0;
  double rate = 30, seconds = 10, deadline = 0;  // the deadline in seconds; 0: the default
  bool lock_memory = false;
  std::vector<int> cores;
};

std::atomic<bool> stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set by a signal handler");

// Whether all of `text` is a number from `least` up.
template <class Number>
bool read_number(const char* text, Number least, Number* number) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  *number = static_cast<Number>(value);
  return end != text && *end == '\0' && value >= least && value <= 1e6 && value == static_cast<double>(*number);
}

bool read_option(const std::string& name, char* value, Options* o) {
  if (name == "camera") o->camera = value;
  if (name == "size") {
    char* by = std::strchr(value, 'x');
    if (!by) return false;
    *by = '\0';
    return read_number(value, 1, &o->width) && read_number(by + 1, 1, &o->height);
  }
  if (name == "rate") return read_number(value, 0.0, &o->rate);
  if (name == "seconds") return read_number(value, 0.0, &o->seconds);
  if (name == "deadline") return read_number(value, 0.0, &o->deadline);
  if (name == "threads") return read_number(value, 1, &o->threads);
  if (name == "lock-memory") o->lock_memory = true;
  if (name == "fifo") return read_number(value, 1, &o->fifo);
  if (name == "cores")
    for (char* core = std::strtok(value, ","); core; core = std::strtok(nullptr, ","))
      if (!read_number(core, 0, &o->cores.emplace_back())) return false;
  return true;
}

bool read_options(int argc, char** argv, Options* o) {
  std::vector<option> known;
  for (const char* name : {"camera", "size", "rate", "seconds", "deadline", "threads", "cores", "fifo"})
    known.push_back({name, required_argument, nullptr, 0});
  known.push_back({"lock-memory", no_argument, nullptr, 0});
  known.push_back({});
  int index = 0;
  for (int found; (found = getopt_long(argc, argv, "", known.data(), &index)) != -1;)
    if (found != 0 || !read_option(known[static_cast<std::size_t>(index)].name, optarg, o)) return false;
  if (optind != argc - 1) return false;
  o->engine = argv[optind];
  o->deadline = o->deadline > 0 ? o->deadline / 1e3 : o->rate > 0 ? 1 / o->rate : 1.0 / 30;
  return true;
}

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

Clock::duration to_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// The camera's thread. The frame is read ahead and handed over at its time; one that comes late keeps its stamp.
void film(Camera& camera, const Options& o, Latest& frames, const std::atomic<bool>& started, std::string& error) {
  while (!started && !stop) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const Clock::time_point start = Clock::now();
  try {
    for (long i = 0; !stop; ++i) {
      Frame& frame = frames.writing();
      if (!camera.read(frame)) break;
      const Clock::time_point due = o.rate > 0 ? start + to_duration(static_cast<double>(i) / o.rate) : Clock::now();
      if (o.seconds > 0 && seconds_between(start, due) >= o.seconds) break;
      std::this_thread::sleep_until(due);
      frame.captured = due;
      frames.publish();
    }
  } catch (const std::exception& problem) {
    error = problem.what();
  }
  frames.close();
}

int run(const Options& o) {
  Latest frames;
  std::string camera_error, engine_error;
  std::atomic<bool> started{false};
  const std::unique_ptr<Camera> camera = open_camera(o.camera, o.height, o.width, stop);
  // Before the loop asks for anything real-time, which its threads would inherit.
  std::thread filming([&] { film(*camera, o, frames, started, camera_error); });
  struct Join {
    std::thread& thread;
    ~Join() {
      stop = true;
      thread.join();
    }
  };

  long delivered = 0, failed = 0, missed = 0;
  Times ages, compute, jitter;
  {
    const Join join{filming};
    bool granted = !o.lock_memory || lock_memory();
    granted = (o.cores.empty() || pin_to(o.cores)) && granted;
    granted = (o.fifo == 0 || run_first(o.fifo)) && granted;
    if (!granted) return 1;

    const dvt_fast::Model model(o.engine);
    dvt_fast::SessionOptions options;
    options.threads = o.threads;
    dvt_fast::Session session(model, options);  // starts the engine's threads, which inherit what was granted
    std::vector<float> features(session.output_size());
    const dvt_fast::Tensor output(features.data(), session.output_shape());
    // The first run allocates the session's workspace and brings weights to memory: before frames come.
    const std::vector<std::uint8_t> grey(static_cast<std::size_t>(o.height) * static_cast<std::size_t>(o.width) * 3,
                                         128);
    session.run(dvt_fast::Tensor(grey.data(), {o.height, o.width, 3}), output);

    const char* isa = nullptr;
    dvt_fast::check(dvt_isa_get(&isa));
    const auto shape = session.output_shape();
    std::printf("%ld x %ld patches, %ld channels; %d threads, %s\n", static_cast<long>(shape[1]),
                static_cast<long>(shape[2]), static_cast<long>(shape[3]), session.info().threads, isa);
    std::fflush(stdout);

    double last_age = -1;
    for (started = true; !stop;) {
      const Frame* frame = frames.take(std::chrono::milliseconds(100));
      if (!frame && frames.closed()) break;
      if (!frame) continue;  // a camera that stalls: a robot would slow down here
      const Clock::time_point begun = Clock::now();
      const dvt_fast::Tensor image(frame->pixels.data(), {frame->height, frame->width, 3});
      if (session.try_run(image, output) != DVT_OK) {
        if (++failed == 1) engine_error = dvt_last_error();
        continue;
      }
      const Clock::time_point finished = Clock::now();
      // Here `features` is [grid height, grid width, dim]: plan, grasp, steer.
      const double age = seconds_between(frame->captured, finished);
      ages.add(age);
      compute.add(seconds_between(begun, finished));
      if (last_age >= 0) jitter.add(std::abs(age - last_age));
      last_age = age;
      missed += age > o.deadline;
      ++delivered;
    }
  }

  std::printf("in %ld = delivered %ld + dropped %ld + failed %ld\n", frames.came(), delivered, frames.dropped(),
              failed);
  std::printf("older than %.1f ms: %ld\n", 1e3 * o.deadline, missed);
  std::printf("%-8s%10s%10s%10s%10s\n", "ms", "p50", "p99", "p99.9", "max");
  ages.print("age");
  compute.print("compute");
  jitter.print("jitter");
  if (!engine_error.empty()) std::fprintf(stderr, "error: engine: %s\n", engine_error.c_str());
  if (!camera_error.empty()) std::fprintf(stderr, "error: camera: %s\n", camera_error.c_str());
  return engine_error.empty() && camera_error.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!read_options(argc, argv, &options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { stop = true; });
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
