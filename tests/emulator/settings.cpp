#include "settings.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace emulator {
namespace {

struct Settings {
  std::mutex mutex;
  std::map<std::string, std::string> overrides;
};

Settings& settings() {
  static Settings& all = *new Settings;  // lives as long as any other static object
  return all;
}

}  // namespace

double setting(const char* name, double otherwise) {
  Settings& all = settings();
  std::lock_guard lock(all.mutex);
  const auto it = all.overrides.find(name);
  const char* text = it != all.overrides.end() ? it->second.c_str() : std::getenv(name);
  return text && *text ? std::strtod(text, nullptr) : otherwise;
}

}  // namespace emulator

void dvt_emulator_set(const char* name, const char* value) {
  emulator::Settings& all = emulator::settings();
  std::lock_guard lock(all.mutex);
  if (value)
    all.overrides[name] = value;
  else
    all.overrides.erase(name);
}
