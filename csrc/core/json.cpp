#include "core/json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <locale>
#include <sstream>

namespace dvt {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    *out += static_cast<char>(code);
  } else if (code < 0x800) {
    *out += static_cast<char>(0xc0 | (code >> 6));
    *out += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    *out += static_cast<char>(0xe0 | (code >> 12));
    *out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    *out += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    *out += static_cast<char>(0xf0 | (code >> 18));
    *out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
    *out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    *out += static_cast<char>(0x80 | (code & 0x3f));
  }
}

// Bytes of the UTF-8 character at the start of `text`; 0 where there is none: cut, overlong, a surrogate, too large.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const unsigned char second = byte(1);
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0) || (first == 0xf0 && second < 0x90) ||
      (first == 0xf4 && second >= 0x90))
    return 0;
  return length;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Status document(JsonValue* out) {
    DVT_RETURN_IF_ERROR(value(out, 0));
    skip_space();
    return at_ == text_.size() ? Status() : error("expected the end of the text");
  }

 private:
  Status value(JsonValue* out, int depth) {
    skip_space();
    if (depth > kMaxJsonDepth) return error("expected at most ", kMaxJsonDepth, " levels");
    if (++values_ > kMaxJsonValues) return error("expected at most ", kMaxJsonValues, " values");
    const size_t start = at_;
    const char c = peek();
    if (c == '{' || c == '[') {
      out->kind = c == '{' ? JsonValue::Kind::object : JsonValue::Kind::array;
      DVT_RETURN_IF_ERROR(items(out, depth));
    } else if (c == '"') {
      out->kind = JsonValue::Kind::string;
      DVT_RETURN_IF_ERROR(string(&out->text));
    } else if (c == '-' || is_digit(c)) {
      out->kind = JsonValue::Kind::number;
      DVT_RETURN_IF_ERROR(number());
    } else if (take("true") || take("false")) {
      out->kind = JsonValue::Kind::boolean;
      out->boolean = c == 't';
    } else if (!take("null")) {
      return error("expected a value");
    }
    out->source = text_.substr(start, at_ - start);
    return Status();
  }

  // The items of an array or an object, from its bracket on.
  Status items(JsonValue* out, int depth) {
    const bool object = out->kind == JsonValue::Kind::object;
    const char close = object ? '}' : ']';
    ++at_;
    skip_space();
    if (peek() == close) {
      ++at_;
      return Status();
    }
    while (true) {
      if (object) {
        skip_space();
        if (peek() != '"') return error("expected a key");
        out->keys.emplace_back();
        DVT_RETURN_IF_ERROR(string(&out->keys.back()));
        skip_space();
        if (peek() != ':') return error("expected ':'");
        ++at_;
      }
      out->items.emplace_back();
      DVT_RETURN_IF_ERROR(value(&out->items.back(), depth + 1));
      skip_space();
      const char c = peek();
      if (c != ',' && c != close) return error("expected ',' or '", std::string(1, close), "'");
      ++at_;
      if (c == close) return object ? check_unique(out->keys) : Status();
    }
  }

  Status check_unique(const std::vector<std::string>& keys) {
    std::vector<std::string_view> sorted(keys.begin(), keys.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    return twice == sorted.end() ? Status() : error("the key ", quoted(*twice), " comes twice");
  }

  Status string(std::string* out) {
    ++at_;
    while (true) {
      // Most characters stand for themselves: copied in runs.
      const size_t start = at_;
      while (at_ < text_.size() && text_[at_] >= ' ' && text_[at_] != '"' && text_[at_] != '\\' && text_[at_] < 0x7f)
        ++at_;
      out->append(text_.substr(start, at_ - start));
      if (at_ == text_.size()) return error("expected the end of a string");
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return Status();
      }
      if (c == '\\') {
        DVT_RETURN_IF_ERROR(escape(out));
      } else {
        if (static_cast<unsigned char>(c) < ' ') return error("expected control characters to be escaped");
        const size_t length = utf8_length(text_.substr(at_));
        if (length == 0) return error("expected UTF-8");
        out->append(text_.substr(at_, length));
        at_ += length;
      }
    }
  }

  Status escape(std::string* out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    ++at_;
    const char c = peek();
    const size_t which = c == '\0' ? std::string_view::npos : kNames.find(c);
    if (which != std::string_view::npos) {
      ++at_;
      *out += kMeanings[which];
      return Status();
    }
    uint32_t code = 0;
    if (c != 'u' || !unicode_escape(&code)) return error("expected an escape sequence");
    if (code >= 0xd800 && code < 0xdc00) {
      const size_t after_first = at_;
      uint32_t second = 0;
      if (take("\\") && peek() == 'u' && unicode_escape(&second) && second >= 0xdc00 && second < 0xe000) {
        code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
      } else {
        at_ = after_first;
      }
    }
    // Half a pair: Python writes one for each byte of a file name that is not UTF-8.
    append_utf8(code >= 0xd800 && code < 0xe000 ? 0xfffd : code, out);
    return Status();
  }

  // "u" and four hexadecimal digits.
  bool unicode_escape(uint32_t* code) {
    if (text_.size() - at_ < 5) return false;
    uint32_t value = 0;
    for (size_t i = 1; i <= 4; ++i) {
      const char c = text_[at_ + i];
      const char letter = static_cast<char>(c | 0x20);
      if (!is_digit(c) && !(letter >= 'a' && letter <= 'f')) return false;
      value = value * 16 + static_cast<uint32_t>(is_digit(c) ? c - '0' : letter - 'a' + 10);
    }
    at_ += 5;
    *code = value;
    return true;
  }

  Status number() {
    if (peek() == '-') ++at_;
    if (!is_digit(peek())) return error("expected a digit");
    if (peek() == '0') {
      ++at_;
    } else {
      skip_digits();
    }
    if (peek() == '.') {
      ++at_;
      if (!is_digit(peek())) return error("expected a digit");
      skip_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!is_digit(peek())) return error("expected a digit");
      skip_digits();
    }
    return Status();
  }

  void skip_digits() {
    while (is_digit(peek())) ++at_;
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }
  // The next character; NUL, which may stand nowhere outside of strings, at the end.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  template <class... Args>
  Status error(const Args&... what) const {
    return invalid_argument("not JSON at byte ", at_, ": ", what...);
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t values_ = 0;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  for (size_t i = 0; i < keys.size(); ++i)
    if (keys[i] == key) return &items[i];
  return nullptr;
}

bool JsonValue::to_integer(int64_t* out) const {
  if (kind != Kind::number) return false;
  const bool negative = source[0] == '-';
  constexpr uint64_t kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  uint64_t value = 0;
  for (const char c : source.substr(negative ? 1 : 0)) {
    if (!is_digit(c)) return false;
    const uint64_t digit = static_cast<uint64_t>(c - '0');
    if (value > (kMax - digit) / 10) return false;
    value = value * 10 + digit;
  }
  *out = negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
  return true;
}

bool JsonValue::to_double(double* out) const {
  if (kind != Kind::number) return false;
  // Not strtod: a program that sets its locale may have made the decimal point a comma.
  std::istringstream stream{std::string(source)};
  stream.imbue(std::locale::classic());
  double value = 0;
  if (!(stream >> value) || !std::isfinite(value)) return false;
  *out = value;
  return true;
}

Status read_json(std::string_view text, JsonValue* out) {
  *out = JsonValue();
  return Parser(text).document(out);
}

std::string quoted(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  std::string out = "'";
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (out.size() + length > kMaxBytes) {
      out += "...";
      break;
    }
    const bool shown = length > 1 || (length == 1 && text[0] >= ' ' && text[0] != 0x7f);
    if (shown) {
      out += text.substr(0, length);
    } else {
      out += '?';
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out + "'";
}

}  // namespace dvt
