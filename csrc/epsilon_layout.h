// How the tensors of `epsilon` lie in memory, reduced to what the loops and kernels need to know.
//
//   units inside:      [sample][position][channel]   linear layers [N, *, C], channels-last convolutions
//   positions inside:  [sample][channel][position]   contiguous convolutions [N, C, *]
//
// Both are [sample][row][column] with neighbouring columns; samples and rows may lie at any distance (also 0).
#pragma once

#include <utility>

#include "check.h"

namespace pxp {

struct RowStrides {
  int64_t sample = 0, row = 0;
};

// The two sums of sample n and unit u lie at `which * [0, 1] + sample * n + u`.
struct SumStrides {
  int64_t which = 0, sample = 0;
};

struct EpsilonLayout {
  int64_t samples, rows, columns, units, group;
  bool units_inside;
  RowStrides carry, output, scaled;
  SumStrides sums;
};

struct EpsilonTensors {
  Tensor carry, output;
  Tensor scaled;               // what is written: a new tensor, or one of the two; `carry` where only sums are
  std::optional<Tensor> sums;  // none where none are wanted
  Tensor result;               // what the caller gets: `scaled`, or the tensor that `scaled` is to be copied to
  EpsilonLayout layout;
  bool copy_back;
};

struct EpsilonSize {
  int64_t unit_dim, channels, positions, group;
};

namespace detail {

struct Strides3 {
  int64_t sample, channel, position;
};

// The strides of a tensor seen as [sample, channel, position]; nothing where the positions have no common stride.
inline std::optional<Strides3> strides3(const Tensor& tensor, int64_t unit_dim) {
  Strides3 result{tensor.stride(0), tensor.stride(unit_dim), 0};
  int64_t inner = 1;
  for (int64_t d = tensor.dim() - 1; d > 0; --d) {
    if (d == unit_dim || tensor.size(d) == 1) continue;
    if (inner == 1) {
      result.position = tensor.stride(d);
    } else if (tensor.stride(d) != result.position * inner) {
      return std::nullopt;
    }
    inner *= tensor.size(d);
  }
  return result;
}

}  // namespace detail

inline bool find_layout(EpsilonTensors& t, const EpsilonSize& size) {
  const auto& [unit_dim, channels, positions, group] = size;
  const auto carry = detail::strides3(t.carry, unit_dim);
  const auto output = detail::strides3(t.output, unit_dim);
  const auto scaled = detail::strides3(t.scaled, unit_dim);
  if (!carry || !output || !scaled) return false;
  EpsilonLayout& layout = t.layout;
  layout.samples = t.output.size(0);
  layout.group = group;
  layout.units = channels / group;
  const bool units_inside = channels == 1 || (carry->channel == 1 && output->channel == 1 && scaled->channel == 1);
  const bool positions_inside =
      group == 1 && (positions == 1 || (carry->position == 1 && output->position == 1 && scaled->position == 1));
  // Where both hold, the longer rows are the better ones.
  if (units_inside && !(positions_inside && positions > channels)) {
    layout.units_inside = true;
    layout.rows = positions;
    layout.columns = channels;
    layout.carry = {carry->sample, carry->position};
    layout.output = {output->sample, output->position};
    layout.scaled = {scaled->sample, scaled->position};
    return true;
  }
  if (positions_inside) {
    layout.units_inside = false;
    layout.rows = channels;
    layout.columns = positions;
    layout.carry = {carry->sample, carry->channel};
    layout.output = {output->sample, output->channel};
    layout.scaled = {scaled->sample, scaled->channel};
    return true;
  }
  return false;
}

inline EpsilonSize check_epsilon(const char* op, const Tensor& carry, const Tensor& output, double eps,
                                 int64_t unit_dim, int64_t group) {
  check_floating(output, op, "output");
  check_like(carry, output, op, "carry");
  STD_TORCH_CHECK(eps >= 0, op, ": eps must not be negative");
  STD_TORCH_CHECK(output.dim() >= 2, op, ": output must have at least 2 dimensions");
  if (unit_dim < 0) unit_dim += output.dim();
  const bool last = unit_dim == output.dim() - 1;
  STD_TORCH_CHECK(last || unit_dim == 1, op, ": unit_dim must be 1 or -1");
  const int64_t channels = output.size(unit_dim);
  STD_TORCH_CHECK(group >= 1 && channels % group == 0 && (last || group == 1), op,
                  ": group must divide the channels, and be 1 where they are not the last dimension");
  int64_t positions = 1;
  for (int64_t d = 1; d < output.dim(); ++d) {
    if (d != unit_dim) positions *= output.size(d);
  }
  return {unit_dim, channels, positions, group};
}

inline void check_sums(const char* op, const Tensor& sums, const Tensor& output, const EpsilonSize& size) {
  const int64_t units = size.channels / size.group;
  STD_TORCH_CHECK(sums.scalar_type() == compute_type(output.scalar_type()) && sums.device() == output.device(), op,
                  ": sums must be float32 (float64 for float64), on the device of output");
  STD_TORCH_CHECK(sums.dim() == 3 && sums.size(0) == 2 && sums.size(1) == output.size(0) && sums.size(2) == units &&
                      (units <= 1 || sums.stride(2) == 1),
                  op, ": sums must be [2, samples, units] with a last stride of 1");
  check_apart(op, "sums", sums);
}

// What is written: a new tensor, the carry or the output itself, or sums alone.
enum class EpsilonTarget { scaled, carry, output, sums };

// Finds how the tensors lie, and copies them only where their strides fit neither layout.
inline EpsilonTensors arrange_epsilon(const Tensor& carry, const Tensor& output, std::optional<Tensor> sums,
                                      const EpsilonSize& size, EpsilonTarget target) {
  const bool fresh = target == EpsilonTarget::scaled, over = target == EpsilonTarget::output;
  const Tensor scaled = fresh ? torch::stable::empty_like(output) : over ? output : carry;
  EpsilonTensors t{carry, output, scaled, sums, scaled, {}, false};
  if (sums) t.layout.sums = {sums->stride(0), sums->stride(1)};
  if (output.numel() == 0 || find_layout(t, size)) return t;

  // One may only be out of step with another that is fine by itself; what is written stays where it is.
  if (target == EpsilonTarget::carry) {
    t.output = torch::stable::empty_like(carry);
    torch::stable::copy_(t.output, output);
  } else {
    t.carry = torch::stable::empty_like(output);
    torch::stable::copy_(t.carry, carry);
    if (target == EpsilonTarget::sums) t.scaled = t.carry;
  }
  if (find_layout(t, size)) return t;

  t.carry = torch::stable::contiguous(carry);
  t.output = torch::stable::contiguous(output);
  t.scaled = fresh ? torch::stable::empty_like(t.output) : over ? t.output : t.carry;
  t.copy_back = fresh || (target != EpsilonTarget::sums && !scaled.is_contiguous());
  find_layout(t, size);
  return t;
}

// The arguments of the four operators, checked.
inline EpsilonTensors prepare_epsilon(const Tensor& carry, const Tensor& output, double eps, int64_t unit_dim,
                                      int64_t group) {
  const EpsilonSize size = check_epsilon("epsilon", carry, output, eps, unit_dim, group);
  const std::initializer_list<int64_t> shape = {2, output.size(0), size.channels / group};
  const ScalarType type = compute_type(output.scalar_type());
  const Tensor sums =
      output.numel() ? torch::stable::new_empty(output, shape, type) : torch::stable::new_zeros(output, shape, type);
  return arrange_epsilon(carry, output, sums, size, EpsilonTarget::scaled);
}

inline EpsilonTensors prepare_epsilon_(const Tensor& carry, const Tensor& output, const std::optional<Tensor>& sums,
                                       double eps, int64_t unit_dim, int64_t group) {
  const EpsilonSize size = check_epsilon("epsilon_", carry, output, eps, unit_dim, group);
  check_apart("epsilon_", "carry", carry);
  if (sums) check_sums("epsilon_", *sums, output, size);
  return arrange_epsilon(carry, output, sums, size, EpsilonTarget::carry);
}

inline EpsilonTensors prepare_epsilon_over_(const Tensor& carry, const Tensor& output,
                                            const std::optional<Tensor>& sums, double eps, int64_t unit_dim,
                                            int64_t group) {
  const EpsilonSize size = check_epsilon("epsilon_over_", carry, output, eps, unit_dim, group);
  check_apart("epsilon_over_", "output", output);
  if (sums) check_sums("epsilon_over_", *sums, output, size);
  return arrange_epsilon(carry, output, sums, size, EpsilonTarget::output);
}

inline EpsilonTensors prepare_unit_sums_(const Tensor& sums, const Tensor& carry, const Tensor& output,
                                         int64_t unit_dim, int64_t group) {
  const EpsilonSize size = check_epsilon("unit_sums_", carry, output, 0, unit_dim, group);
  check_sums("unit_sums_", sums, output, size);
  return arrange_epsilon(carry, output, sums, size, EpsilonTarget::sums);
}

inline void finish_epsilon(EpsilonTensors& t) {
  if (t.copy_back) torch::stable::copy_(t.result, t.scaled);
}

}  // namespace pxp
