#include "tensors.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

namespace fused_logistic {
namespace {

// An op of torch's by its name.
template <class... Arguments>
Tensor call(const char* name, const Arguments&... arguments) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The dimensions from the slowest to the fastest in memory.
std::vector<int64_t> memory_order(const Tensor& tensor) {
  const auto strides = tensor.strides();
  std::vector<int64_t> order(strides.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return strides[i] > strides[j]; });
  return order;
}

bool is_dense(const Tensor& tensor, const std::vector<int64_t>& order) {
  if (tensor.numel() == 0) return true;
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (tensor.size(*d) == 1) continue;
    if (tensor.stride(*d) != expected) return false;
    expected *= tensor.size(*d);
  }
  return true;
}

bool broadcasts(const Tensor& tensor, const Tensor& logits) {
  const auto sizes = tensor.sizes(), shape = logits.sizes();
  if (sizes.size() > shape.size()) return false;
  const size_t missing = shape.size() - sizes.size();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1 && sizes[i] != shape[missing + i]) return false;
  }
  return true;
}

bool same_device(const Tensor& a, const Tensor& b) { return a.device() == b.device(); }

bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

// The dimension of the classes, 1 or the only one, as in torch's cross_entropy.
int64_t class_dim(const Tensor& logits) { return logits.dim() > 1 ? 1 : 0; }

// Whether a target is of class indices: of an integer dtype, and a dimension less than the logits.
// Of a single class it is rather labels whose dimension was forgotten, of which 0 would be the positive.
bool has_class_indices(const Tensor& target, const Tensor& logits) {
  const ScalarType type = target.scalar_type();
  return !is_floating(type) && type != ScalarType::Bool && target.dim() + 1 == logits.dim() &&
         logits.size(class_dim(logits)) != 1;
}

}  // namespace

void refuse(const char* op, const char* what) {
  throw std::runtime_error(std::string("fused_logistic::") + op + ": " + what);
}

DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Bool:
    case ScalarType::Byte:
      return DType::kUInt8;
    case ScalarType::Char:
      return DType::kInt8;
    case ScalarType::Short:
      return DType::kInt16;
    case ScalarType::Int:
      return DType::kInt32;
    case ScalarType::Long:
      return DType::kInt64;
    default:
      refuse("dtype_of", "no kernel reads this dtype");
  }
}

const void* data_of(const Tensor& tensor, const char* op) {
  const void* const data = tensor.const_data_ptr();
  require(data != nullptr || tensor.numel() == 0, op, "the storage of a tensor was freed");
  return data;
}

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

Tensor empty_strided(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, ScalarType dtype,
                     torch::stable::Device device) {
  using torch::stable::detail::from, torch::stable::detail::to;
  AtenTensorHandle result = nullptr;
  const auto error =
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), to<int32_t>(from(dtype)),
                               to<int32_t>(from(device.type())), device.index(), &result);
  // The stable ABI says that it failed, not with which exception. Of sizes that a tensor has it is this, unless a GPU had
  // failed before, about which ops.py asks.
  if (error != TORCH_SUCCESS) {
    const int64_t numel = std::accumulate(sizes.begin(), sizes.end(), int64_t(1), std::multiplies<>());
    const std::string what = FL_OUT_OF_MEMORY " for " + std::to_string(numel) + " elements";
    refuse("empty", what.c_str());
  }
  return Tensor(result);
}

TensorProblem::TensorProblem(const char* op, const Tensor& logits, const OptionalTensor& mask)
    : op_(op), logits_(logits), contiguous_(logits.is_contiguous()) {
  if (!contiguous_) {
    order_ = memory_order(logits_);
    if (!is_dense(logits_, order_)) {
      logits_ = torch::stable::clone(logits_);
      contiguous_ = logits_.is_contiguous();
    }
  }
  if (!contiguous_) order_ = memory_order(logits_);
  require(!mask.has_value() || mask->scalar_type() == ScalarType::Bool, op, "mask is not bool");
  problem.numel = logits_.numel();
  problem.mask = optional_operand(mask);
}

TensorProblem::TensorProblem(const char* op, const Operands& given, const Options& options)
    : TensorProblem(op, given.logits, given.mask) {
  const ScalarType type = logits_.scalar_type(), target = given.target.scalar_type();
  require(is_floating(type), op, "logits have no floating point dtype");
  const bool is_index = has_class_indices(given.target, logits_);
  require(is_index || same_sizes(given.target, logits_), op, "target is not of the logits' shape");
  require(!given.count.has_value() || (given.count->scalar_type() == ScalarType::Double && given.count->numel() == 1 &&
                                       same_device(*given.count, logits_)),
          op, "count is not one float64 on the logits' device");
  problem.logits = {data_of(logits_, op), dtype_of(type), 1, problem.numel};
  problem.target = is_index ? class_indices(given.target) : operand(given.target);
  problem.weight = optional_operand(given.weight);
  problem.pos_weight = optional_operand(given.pos_weight);
  problem.compute_double = type == ScalarType::Double || target == ScalarType::Double;
  problem.options = options;
}

TensorProblem::TensorProblem(const char* op, const Tensor& target, const OptionalTensor& mask, const Options& options)
    : TensorProblem(op, target, mask) {
  const ScalarType type = target.scalar_type();
  if (leaves_out(options)) problem.target = operand(logits_);  // the target is what stands in their place
  problem.compute_double = type == ScalarType::Double || type == ScalarType::Int || type == ScalarType::Long;
  problem.options = options;
}

void TensorProblem::set_grad_output(const Tensor& grad_output) { problem.grad_output = operand(grad_output); }

void TensorProblem::set_out(const Tensor& out) {
  require(is_floating(out.scalar_type()), op_, "a result has no floating point dtype");
  problem.out = out.mutable_data_ptr();
  problem.out_dtype = dtype_of(out.scalar_type());
}

Operand TensorProblem::optional_operand(const OptionalTensor& tensor) {
  return tensor.has_value() ? operand(*tensor) : Operand();
}

// The tensor's strides as those of the logits' dimensions, in the order of their memory; 0 where it is broadcast.
std::vector<int64_t> TensorProblem::strides_in_order(const Tensor& tensor) const {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t missing = logits_.dim() - int64_t(sizes.size());
  std::vector<int64_t> result;
  for (int64_t i = 0; i < logits_.dim(); ++i) {
    const int64_t own = in_memory(i) - missing;
    result.push_back(own < 0 || sizes[own] == 1 ? 0 : strides[own]);
  }
  return result;
}

Operand TensorProblem::operand(const Tensor& tensor) {
  require(same_device(tensor, logits_), op_, "an operand is on another device than the logits");
  require(broadcasts(tensor, logits_), op_, "an operand does not broadcast to the logits");
  const DType dtype = dtype_of(tensor.scalar_type());
  if (tensor.numel() == 1) return {data_of(tensor, op_), dtype, 1, 1};
  if (contiguous_ && tensor.is_contiguous() && same_sizes(tensor, logits_)) {
    return {data_of(tensor, op_), dtype, 1, problem.numel};
  }
  // From the fastest dimension on: some over which the tensor is constant, then some along which it is dense, then
  // some over which it repeats.
  const std::vector<int64_t> strides = strides_in_order(tensor);
  const auto extent = [&](int64_t d) { return logits_.size(in_memory(d)); };
  int64_t inner = 1, size = 1, d = int64_t(strides.size()) - 1;
  for (; d >= 0 && (strides[d] == 0 || extent(d) == 1); --d) inner *= extent(d);
  for (; d >= 0 && (strides[d] == size || extent(d) == 1); --d) size *= extent(d);
  for (; d >= 0 && (strides[d] == 0 || extent(d) == 1); --d) {
  }
  if (d < 0) return {data_of(tensor, op_), dtype, inner, size};
  // Strided memory: copy the tensor as small as it is, then look again. What varies along two groups of dimensions
  // with a broadcast one between them is copied in full.
  Tensor small = tensor;
  for (int64_t i = 0; i < small.dim(); ++i) {
    if (small.stride(i) == 0) small = torch::stable::narrow(small, i, 0, 1);
  }
  if (!small.is_contiguous()) {
    owned_.push_back(torch::stable::contiguous(small));
    return operand(owned_.back());
  }
  Tensor full = call("aten::expand", tensor, logits_.sizes(), /*implicit=*/false);
  if (!contiguous_) full = call("aten::permute", full, IntHeaderOnlyArrayRef(order_));
  owned_.push_back(torch::stable::contiguous(full));
  return {owned_.back().const_data_ptr(), dtype, 1, problem.numel};
}

// The indices lie as the logits do.
Operand TensorProblem::class_indices(const Tensor& target) {
  require(same_device(target, logits_), op_, "an operand is on another device than the logits");
  const int64_t dim = class_dim(logits_);
  std::vector<int64_t> order;  // the target's dimensions, in that of the logits' memory
  int64_t inner = 1;
  for (int64_t i = 0; i < logits_.dim(); ++i) {
    const int64_t d = in_memory(i), own = d > dim ? d - 1 : d;
    inner = d == dim ? 1 : inner * logits_.size(d);
    if (d == dim) continue;
    require(target.size(own) == logits_.size(d), op_, "class indices are not of the logits' shape without the classes");
    order.push_back(own);
  }
  Tensor indices = contiguous_ ? target : call("aten::permute", target, IntHeaderOnlyArrayRef(order));
  if (!indices.is_contiguous()) owned_.push_back(indices = torch::stable::contiguous(indices));
  return {data_of(indices, op_), dtype_of(indices.scalar_type()), inner, indices.numel(), logits_.size(dim)};
}

}  // namespace fused_logistic
