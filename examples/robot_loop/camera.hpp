// Where frames come from: a moving pattern, raw RGB from a file or a pipe, or PPM pictures, one after the other or in a
// folder. A camera driver of yours takes the place of these: something that fills a Frame.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using Clock = std::chrono::steady_clock;

struct Frame {
  std::vector<std::uint8_t> pixels;  // RGB, row by row
  int height = 0, width = 0;
  Clock::time_point captured;

  void resize(int h, int w) {
    height = h;
    width = w;
    pixels.resize(static_cast<std::size_t>(h) * static_cast<std::size_t>(w) * 3);  // allocates for the first ones only
  }
};

class Camera {
 public:
  virtual ~Camera() = default;
  // Waits for the next frame; false: there is none, or the program ends. Throws std::runtime_error.
  virtual bool read(Frame& frame) = 0;
};

// Diagonal stripes that move.
class Synthetic : public Camera {
 public:
  Synthetic(int height, int width) : height_(height), width_(width) {}
  bool read(Frame& frame) override {
    frame.resize(height_, width_);
    std::uint8_t* pixel = frame.pixels.data();
    for (int y = 0; y < height_; ++y)
      for (int x = 0; x < width_; ++x, pixel += 3) {
        pixel[0] = static_cast<std::uint8_t>(x + 5 * shift_);
        pixel[1] = static_cast<std::uint8_t>(y + 3 * shift_);
        pixel[2] = static_cast<std::uint8_t>(x + y);
      }
    ++shift_;
    return true;
  }

 private:
  int height_, width_, shift_ = 0;
};

// A file or a pipe, read to the byte; a pipe that stays silent does not keep the program from ending.
class Bytes {
 public:
  Bytes(const std::string& path, const std::atomic<bool>& stop)
      : path_(path), file_(path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)), stop_(stop) {
    if (file_ < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
  }
  ~Bytes() {
    if (file_ != STDIN_FILENO) ::close(file_);
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  // False at the end, or when the program ends. Throws where the end comes in between.
  bool read(void* to, std::size_t size) {
    for (std::size_t done = 0; done < size;) {
      pollfd ready{file_, POLLIN, 0};
      const int waited = ::poll(&ready, 1, 100);
      if (stop_) return false;
      if (waited == 0 || (waited < 0 && errno == EINTR)) continue;
      const ssize_t n = ::read(file_, static_cast<char*>(to) + done, size - done);
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n < 0) throw std::runtime_error(path_ + ": " + std::strerror(errno));
      if (n == 0 && done == 0) return false;
      if (n == 0) throw std::runtime_error(path_ + ": ends within a frame");
      done += static_cast<std::size_t>(n);
    }
    return true;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int file_;
  const std::atomic<bool>& stop_;
};

// Frames of one size without anything between them, as ffmpeg -f rawvideo -pix_fmt rgb24 writes them.
class Raw : public Camera {
 public:
  Raw(const std::string& path, int height, int width, const std::atomic<bool>& stop)
      : bytes_(path, stop), height_(height), width_(width) {}
  bool read(Frame& frame) override {
    frame.resize(height_, width_);
    return bytes_.read(frame.pixels.data(), frame.pixels.size());
  }

 private:
  Bytes bytes_;
  int height_, width_;
};

// Binary PPM pictures of 8 bits, of any size, from files or from one stream of them (ffmpeg -f image2pipe -c:v ppm).
class Ppm : public Camera {
 public:
  Ppm(std::vector<std::string> paths, const std::atomic<bool>& stop) : paths_(std::move(paths)), stop_(stop) {}
  bool read(Frame& frame) override {
    for (;; bytes_.reset()) {
      if (!bytes_) {
        if (next_ == paths_.size()) return false;
        bytes_ = std::make_unique<Bytes>(paths_[next_++], stop_);
      }
      char magic[2];
      if (!bytes_->read(magic, 2)) continue;
      if (magic[0] != 'P' || magic[1] != '6') throw std::runtime_error(bytes_->path() + ": expected a binary PPM (P6)");
      const int width = number(), height = number(), largest = number();
      if (largest != 255) throw std::runtime_error(bytes_->path() + ": expected 8 bits a value");
      frame.resize(height, width);
      return bytes_->read(frame.pixels.data(), frame.pixels.size());
    }
  }

 private:
  // The next number of the header, from 1 to 65535, and the one byte after it.
  int number() {
    int value = 0;
    for (bool comment = false;;) {
      char c;
      if (!bytes_->read(&c, 1)) return 1;  // the pixels will not come either
      comment = (comment || c == '#') && c != '\n';
      if (comment) continue;
      if (std::isdigit(static_cast<unsigned char>(c))) {
        value = 10 * value + (c - '0');
      } else if (value > 0 || !std::isspace(static_cast<unsigned char>(c))) {
        if (value > 0 && std::isspace(static_cast<unsigned char>(c))) return value;
        throw std::runtime_error(bytes_->path() + ": not a PPM header");
      }
      if (value > 65535) throw std::runtime_error(bytes_->path() + ": not a PPM header");
    }
  }

  std::vector<std::string> paths_;
  const std::atomic<bool>& stop_;
  std::size_t next_ = 0;
  std::unique_ptr<Bytes> bytes_;
};

// "synthetic"; a folder of .ppm files, in the order of their names; a .ppm file; else raw RGB of the given size from a
// file, or from the standard input, which is "-".
inline std::unique_ptr<Camera> open_camera(const std::string& name, int height, int width,
                                           const std::atomic<bool>& stop) {
  const auto is_ppm = [](const std::filesystem::path& path) { return path.extension() == ".ppm"; };
  if (name == "synthetic") return std::make_unique<Synthetic>(height, width);
  if (std::filesystem::is_directory(name)) {
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::directory_iterator(name))
      if (is_ppm(entry.path())) paths.push_back(entry.path().string());
    if (paths.empty()) throw std::runtime_error(name + ": no .ppm files in this folder");
    std::sort(paths.begin(), paths.end());
    return std::make_unique<Ppm>(std::move(paths), stop);
  }
  if (is_ppm(name)) return std::make_unique<Ppm>(std::vector<std::string>{name}, stop);
  return std::make_unique<Raw>(name, height, width, stop);
}
