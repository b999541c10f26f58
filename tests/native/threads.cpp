// Threads: each with a session of its own gets the bits that one alone gets; two in one session are DVT_BUSY; errors
// belong to the thread whose call failed; models are loaded, used and let go of by several threads at once.
#include "check.hpp"

#include <chrono>
#include <cstring>
#include <thread>

namespace {

using dvt_fast::Model;
using dvt_fast::Session;
using dvt_fast::Tensor;

// Large enough for a run to take a while.
Session make_session(const Model& model, std::int32_t threads = 1) {
  dvt_fast::SessionOptions options;
  options.threads = threads;
  options.image_height = options.image_width = 128;
  return Session(model, options);
}

std::vector<float> features(Session& session, const std::vector<std::uint8_t>& pixels) {
  std::vector<float> out(session.output_size());
  CHECK(session.try_run(Tensor(pixels.data(), {240, 320, 3}), Tensor(out.data(), session.output_shape())) == DVT_OK);
  return out;
}

void sessions_side_by_side(const char* path) {
  const Model model(path);
  const std::vector<std::vector<std::uint8_t>> frames = {noise(240 * 320 * 3, 1), noise(240 * 320 * 3, 2)};
  std::vector<std::vector<float>> expected;
  for (const auto& frame : frames) {
    Session session = make_session(model);
    expected.push_back(features(session, frame));
  }
  CHECK(expected[0] != expected[1]);
  std::vector<std::thread> workers;
  for (std::size_t i = 0; i < 2; ++i)
    workers.emplace_back([&, i] {
      Session session = make_session(model, static_cast<std::int32_t>(i + 1));  // one of them with a helper
      for (std::size_t k = 0; k < 6; ++k) CHECK(features(session, frames[(i + k) % 2]) == expected[(i + k) % 2]);
    });
  for (auto& worker : workers) worker.join();
}

void two_callers_of_one_session(const char* path) {
  Session session = make_session(Model(path));
  const auto frame = noise(240 * 320 * 3);
  const auto expected = features(session, frame);
  std::atomic<long> done{0}, busy{0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  const auto call = [&] {
    std::vector<float> out(expected.size());
    const Tensor input(frame.data(), {240, 320, 3}), output(out.data(), session.output_shape());
    while ((busy == 0 || done < 5) && std::chrono::steady_clock::now() < end) {
      const dvt_status status = session.try_run(input, output);
      CHECK(status == DVT_OK || status == DVT_BUSY);
      if (status == DVT_BUSY) {
        CHECK(std::strlen(dvt_last_error()) > 0);
        ++busy;
        std::this_thread::yield();
      } else {
        CHECK(out == expected);
        ++done;
      }
    }
  };
  std::thread one(call), other(call);
  one.join();
  other.join();
  CHECK(busy > 0 && done >= 5);
  CHECK(features(session, frame) == expected);
}

void errors_of_threads(const char* path) {
  CHECK(dvt_model_load("no/such/file", nullptr, nullptr) == DVT_INVALID_ARGUMENT);
  const std::string mine = dvt_last_error();
  std::thread([&] {
    CHECK(std::string(dvt_last_error()).empty());
    dvt_model* model = nullptr;
    CHECK(dvt_model_load("another/file", nullptr, &model) == DVT_INVALID_ARGUMENT);
    CHECK(std::string(dvt_last_error()).find("another/file") != std::string::npos);
    CHECK(dvt_model_load(path, nullptr, &model) == DVT_OK);
    CHECK(dvt_model_destroy(model) == DVT_OK);
  }).join();
  CHECK(mine == dvt_last_error());
}

void loaded_by_many(const char* path) {
  const auto frame = noise(240 * 320 * 3);
  std::vector<std::vector<float>> results(4);
  std::vector<std::thread> workers;
  for (auto& result : results)
    workers.emplace_back([&] {
      Session session = make_session(Model(path));
      result = features(session, frame);
    });
  for (auto& worker : workers) worker.join();
  for (const auto& result : results) CHECK(result == results[0]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  sessions_side_by_side(argv[1]);
  two_callers_of_one_session(argv[1]);
  errors_of_threads(argv[1]);
  loaded_by_many(argv[1]);
  return failures != 0;
}
