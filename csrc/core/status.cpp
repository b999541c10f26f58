#include "core/status.h"

#include <cstdio>

namespace dvt {

std::string format_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace dvt
