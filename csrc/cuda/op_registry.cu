#include "cuda/op_registry.h"

namespace dvt::cuda {
namespace {

std::map<std::string, OpFunction>& table() {
  static std::map<std::string, OpFunction> ops;
  return ops;
}

}  // namespace

OpRegistration::OpRegistration(const char* name, OpFunction function) { table()[name] = function; }

std::vector<std::string> registered_ops() {
  std::vector<std::string> names;
  for (const auto& op : table()) names.push_back(op.first);
  return names;
}

OpFunction find_op(const std::string& name) {
  const auto found = table().find(name);
  return found == table().end() ? nullptr : found->second;
}

Status OpCall::tensor(const std::string& name, OpType type, const OpTensor** out) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return invalid_argument("the op needs a tensor '", name, "'");
  if (found->second.type != type)
    return invalid_argument("tensor '", name, "' must be ", op_type_name(type), ", got ",
                            op_type_name(found->second.type));
  *out = &found->second;
  return Status();
}

double OpCall::number(const std::string& name, double otherwise) const {
  const auto found = numbers.find(name);
  return found == numbers.end() ? otherwise : found->second;
}

std::string OpCall::word(const std::string& name, const std::string& otherwise) const {
  const auto found = words.find(name);
  return found == words.end() ? otherwise : found->second;
}

}  // namespace dvt::cuda
