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

struct EpsilonLayout {
  int64_t samples, rows, columns, units, group;
  bool units_inside;
  RowStrides carry, output, scaled;
};

struct EpsilonTensors {
  Tensor carry, output, scaled, sums;
  Tensor result;  // what the caller gets: `scaled`, or the tensor that `scaled` is to be copied to
  EpsilonLayout layout;
  bool copy_back;
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

inline bool find_layout(EpsilonTensors& t, int64_t unit_dim, int64_t channels, int64_t positions, int64_t group) {
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

// Checks the arguments, allocates the results once, and copies an input only where its strides fit neither layout.
inline EpsilonTensors prepare_epsilon(const Tensor& carry, const Tensor& output, double eps, int64_t unit_dim,
                                      int64_t group) {
  check_floating(output, "epsilon", "output");
  check_like(carry, output, "epsilon", "carry");
  STD_TORCH_CHECK(eps >= 0, "epsilon: eps must not be negative");
  STD_TORCH_CHECK(output.dim() >= 2, "epsilon: output must have at least 2 dimensions");
  if (unit_dim < 0) unit_dim += output.dim();
  const bool last = unit_dim == output.dim() - 1;
  STD_TORCH_CHECK(last || unit_dim == 1, "epsilon: unit_dim must be 1 or -1");
  const int64_t channels = output.size(unit_dim);
  STD_TORCH_CHECK(group >= 1 && channels % group == 0 && (last || group == 1),
                  "epsilon: group must divide the channels, and be 1 where they are not the last dimension");
  int64_t positions = 1;
  for (int64_t d = 1; d < output.dim(); ++d) {
    if (d != unit_dim) positions *= output.size(d);
  }

  Tensor scaled = torch::stable::empty_like(output);
  EpsilonTensors t{carry, output, scaled, {}, scaled, {}, false};
  const ScalarType sums_type = compute_type(output.scalar_type());
  const std::initializer_list<int64_t> sums_size = {2, output.size(0), channels / group};
  if (output.numel() == 0) {
    t.sums = torch::stable::new_zeros(output, sums_size, sums_type);
    t.layout = {};
    return t;
  }
  t.sums = torch::stable::new_empty(output, sums_size, sums_type);
  if (find_layout(t, unit_dim, channels, positions, group)) return t;

  // The carry may only be out of step with an output that is fine by itself.
  t.carry = torch::stable::empty_like(output);
  torch::stable::copy_(t.carry, carry);
  if (find_layout(t, unit_dim, channels, positions, group)) return t;

  t.carry = torch::stable::contiguous(carry);
  t.output = torch::stable::contiguous(output);
  t.scaled = torch::stable::empty_like(t.output);
  t.copy_back = true;
  find_layout(t, unit_dim, channels, positions, group);
  return t;
}

inline std::tuple<Tensor, Tensor> finish_epsilon(EpsilonTensors& t) {
  if (t.copy_back) torch::stable::copy_(t.result, t.scaled);
  return {t.result, t.sums};
}

}  // namespace pxp
