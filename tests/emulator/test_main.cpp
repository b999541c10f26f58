#include "check.h"

namespace check {
std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
int failures = 0;
}  // namespace check

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const check::Test& test : check::tests()) std::puts(test.name);
    return 0;
  }
  for (const check::Test& test : check::tests())
    if (!std::strcmp(test.name, argv[1])) {
      test.run();
      return check::failures ? 1 : 0;
    }
  std::printf("no test %s\n", argv[1]);
  return 2;
}
