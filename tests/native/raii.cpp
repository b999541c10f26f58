// The C++ header: objects that let go of themselves, errors as exceptions, and none from `try_run`.
#include "check.hpp"

#include <fstream>
#include <iterator>
#include <type_traits>
#include <utility>

namespace {

using dvt_fast::Error;
using dvt_fast::Model;
using dvt_fast::Session;
using dvt_fast::Tensor;

static_assert(std::is_nothrow_move_constructible_v<Model> && !std::is_copy_constructible_v<Model>);
static_assert(std::is_nothrow_move_constructible_v<Session> && !std::is_copy_constructible_v<Session>);
static_assert(noexcept(std::declval<Session&>().try_run(std::declval<Tensor>(), std::declval<Tensor>())));

// What `action` throws as "DVT_...: sentence", or "" where it does not.
template <class Action>
std::string thrown(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return std::string(dvt_status_name(error.status())) + ": " + error.what();
  }
  return "";
}

bool begins(const std::string& text, const std::string& start) { return text.compare(0, start.size(), start) == 0; }

Session make_session(const char* path, std::int32_t threads) {
  dvt_fast::SessionOptions options;
  options.threads = threads;
  return Session(Model(path), options);  // the model goes; the session keeps what it needs
}

void results(const char* path) {
  const auto pixels = noise(90 * 120 * 3);
  const Tensor image(pixels.data(), {90, 120, 3});
  Session session = make_session(path, 1);
  std::vector<float> expected(session.output_size()), raw(expected.size()), found(expected.size());
  const Tensor output(expected.data(), session.output_shape()), raw_output(raw.data(), session.output_shape());
  session.run(image, output, &raw_output);
  CHECK(expected != raw);

  Session moved = std::move(session);
  const Tensor again(found.data(), moved.output_shape());
  CHECK(moved.try_run(image, again) == DVT_OK);
  CHECK(found == expected);

  Session parallel = make_session(path, 2);
  CHECK(parallel.info().threads == 2);
  std::fill(found.begin(), found.end(), 0.0f);
  parallel.run(image, again);
  CHECK(found == expected);

  std::vector<char> memory(parallel.info().workspace_bytes + 64);
  void* workspace = memory.data();
  std::size_t space = memory.size();
  CHECK(std::align(parallel.info().workspace_alignment, parallel.info().workspace_bytes, workspace, space));
  std::fill(found.begin(), found.end(), 0.0f);
  parallel.run(image, again, nullptr, workspace, space);
  CHECK(found == expected);
}

void errors(const char* path) {
  CHECK(begins(thrown([] { Model("no/such/file"); }), "DVT_INVALID_ARGUMENT: no/such/file"));
  CHECK(begins(thrown([] { Model("", 0); }), "DVT_INVALID_ARGUMENT: "));
  CHECK(begins(thrown([] { Tensor(static_cast<float*>(nullptr), {1, 2, 3, 4, 5}); }), "DVT_INVALID_ARGUMENT: "));
  CHECK(begins(thrown([] { Tensor(static_cast<float*>(nullptr), {1, 2}, {1}); }), "DVT_INVALID_ARGUMENT: strides"));

  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const Model model(bytes.data(), bytes.size());
  CHECK(model.info().has_vit && model.info().dim > 0);
  dvt_fast::SessionOptions options;
  options.batch = -1;
  CHECK(begins(thrown([&] { Session(model, options); }), "DVT_INVALID_ARGUMENT: "));

  Session session(model);
  std::vector<float> features(session.output_size());
  const auto pixels = noise(90 * 120 * 3);
  const Tensor wrong(pixels.data(), {90, 120, 4}), output(features.data(), session.output_shape());
  CHECK(begins(thrown([&] { session.run(wrong, output); }), "DVT_INVALID_ARGUMENT: "));
  CHECK(session.try_run(wrong, output) == DVT_INVALID_ARGUMENT);
  CHECK(thrown([&] { session.run(Tensor(pixels.data(), {90, 120, 3}), output); }).empty());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  results(argv[1]);
  errors(argv[1]);
  return failures != 0;
}
