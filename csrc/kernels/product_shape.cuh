// What is multiplied, and which part of it belongs to a block.
//
// The input gradient of a convolution at z[n, :, h, w] is, over the taps (r, s) that had looked at (h, w),
//
//   c[n, :, h, w] = sum over (r, s) of  above[n, :, i, j] @ weight[:, :, r, s],   h = i stride - padding + r dilation.
//
// Which taps those are depends on h mod stride alone (and w likewise). All pixels of one such parity class meet the
// same taps at a fixed distance, so a block takes rows of one class, walks through these taps and multiplies nothing by
// zero but at the image's edge. A linear layer is the 1x1 convolution of an image that is one row of positions high.
#pragma once

#include "device.cuh"

namespace pxp::cuda {

// Steps, in elements, through a tensor [samples, channels, rows, columns]; a weight's samples are its features.
struct ImageStrides {
  int64_t sample, channel;
  int64_t axis[2];
};

// Arrays of two are for rows and columns.
struct ProductShape {
  int64_t samples;
  int size[2], above[2];  // of z, and of what the layer made of it
  int taps[2], stride[2], padding[2], dilation[2];
  int groups, channels, features;       // the groups of the convolution; channels of z, and of what is above, in each
  int group_channels;                   // `channels`, but for DirectLoop
  ImageStrides scaled, weight, output;  // the carry that joins and the result lie as the output does
  int head;                             // neighbouring channels that make one unit
  int column_step;                      // from one tile of columns to the next
  int column_tiles, segments;           // per row of tiles; samples that a tile can meet, at most
  int64_t tiles, units;                 // rows of tiles in the largest class; units of all groups
  Activation activation;
  bool stabilized_sums;
  double eps;
};

// The pixels of a parity class along one axis: first, first + stride, ...; pixel i of them meets the taps tap,
// tap + tap_step, ... at the positions i + offset, i + offset - offset_step, ... above.
struct ClassAxis {
  int first, count, tap, taps, tap_step, offset, offset_step;
};

__host__ __device__ inline ClassAxis class_axis(const ProductShape& shape, int axis, int parity) {
  const int stride = shape.stride[axis], dilation = shape.dilation[axis], start = parity + shape.padding[axis];
  ClassAxis result{parity, 0, 0, 0, 1, 0, 0};
  if (parity < shape.size[axis]) result.count = (shape.size[axis] - 1 - parity) / stride + 1;
  if (stride > 1) {  // dividing takes time, and most layers have a stride of 1
    while (result.tap_step * dilation % stride) ++result.tap_step;
    while (result.tap < result.tap_step && (start - result.tap * dilation) % stride) ++result.tap;
  }
  if (result.tap < result.tap_step && result.tap < shape.taps[axis]) {
    result.taps = (shape.taps[axis] - 1 - result.tap) / result.tap_step + 1;
    result.offset = (start - result.tap * dilation) / stride;
    result.offset_step = result.tap_step * dilation / stride;
  }
  return result;
}

__host__ __device__ inline int64_t class_count(const ProductShape& shape) {
  return int64_t(shape.stride[0]) * shape.stride[1];
}

struct ProductPlan {
  // Whether the tiles sum heads, and leave partial sums. Otherwise they leave the relevance of all channels.
  bool heads_in_tiles;
  int64_t workspace;  // elements that either takes
  int64_t blocks[2];  // the grid
};

// Fills in what follows from the rest of `shape`, for tiles of `rows` by `columns` that are finished in packs of
// `vector` channels: heads must consist of these, and be whole in a tile.
inline ProductPlan plan_tiles(ProductShape& shape, int rows, int columns, int vector) {
  const bool whole_heads = shape.head == 1 || (shape.head <= columns && shape.head % vector == 0);
  shape.column_step = whole_heads ? columns / shape.head * shape.head : columns;
  shape.column_tiles = (shape.channels + shape.column_step - 1) / shape.column_step;
  shape.units = int64_t(shape.groups) * shape.channels / shape.head;
  int64_t most = 1, fewest = 1;  // positions of a sample in the largest and in the smallest class
  for (int axis = 0; axis < 2; ++axis) {
    most *= (shape.size[axis] - 1) / shape.stride[axis] + 1;
    fewest *= shape.size[axis] < shape.stride[axis] ? 1 : shape.size[axis] / shape.stride[axis];
  }
  shape.tiles = (shape.samples * most + rows - 1) / rows;
  shape.segments = int((rows - 2 + fewest) / fewest) + 1;
  if (shape.segments > shape.samples) shape.segments = int(shape.samples);
  const int64_t partials = class_count(shape) * shape.tiles * shape.segments * 2 * shape.units;
  return {whole_heads,
          whole_heads ? partials : shape.samples * shape.size[1] * shape.channels,
          {shape.tiles * shape.column_tiles, class_count(shape) * int64_t(shape.groups)}};
}

// A block's share: `rows` pixels of a class from `first` on, counted [sample][row][column], and `columns` channels of a
// group from `channel` on.
struct ProductTile {
  int64_t first, positions;  // first row; positions of the class in one sample
  int64_t index;             // of its row of tiles, among those of all classes
  int64_t sample;            // of the first row
  int rows, group, channel, columns;
  ClassAxis axis[2];
};

// grid: as planned. Without rows where the class is smaller than the largest.
template <int kRows>
__device__ __forceinline__ ProductTile product_tile(const ProductShape& shape) {
  ProductTile tile;
  // The last class has most taps, as a rule: it should not be what the others wait for.
  const int parity = int(class_count(shape)) - 1 - int(blockIdx.y) / shape.groups;
  tile.group = int(blockIdx.y) % shape.groups;
  const unsigned row = blockIdx.x / unsigned(shape.column_tiles);
  tile.channel = int(blockIdx.x % unsigned(shape.column_tiles)) * shape.column_step;
  tile.columns = shape.channels - tile.channel < shape.column_step ? shape.channels - tile.channel : shape.column_step;
  tile.index = parity * shape.tiles + row;
  tile.axis[0] = class_axis(shape, 0, parity / shape.stride[1]);
  tile.axis[1] = class_axis(shape, 1, parity % shape.stride[1]);
  tile.positions = int64_t(tile.axis[0].count) * tile.axis[1].count;
  tile.first = int64_t(row) * kRows;
  const int64_t rest = shape.samples * tile.positions - tile.first;
  tile.rows = rest < 0 ? 0 : rest < kRows ? int(rest) : kRows;
  tile.sample = tile.rows ? tile.first / tile.positions : 0;
  return tile;
}

// Where the rows of a tile lie, found once: what follows divides no more.
template <int kRows>
struct ProductRows {
  int64_t output[kRows], scaled[kRows];  // offsets of the first channel; above: of the pixel without the taps' offsets
  int position[2][kRows];                // in the class
};

template <int kRows, int kThreadCount>
__device__ __forceinline__ void find_rows(ProductRows<kRows>& rows, const ProductTile& tile,
                                          const ProductShape& shape) {
  // Positions are fewer than 2^31: from the tile's first sample on, 32 bits are enough to count them.
  const unsigned positions = unsigned(tile.positions), columns = unsigned(tile.axis[1].count);
  const unsigned before = unsigned(tile.first - tile.sample * tile.positions);
#pragma unroll 1
  for (int row = threadIdx.x; row < kRows; row += kThreadCount) {
    const unsigned ahead = before + unsigned(row), place = ahead % positions;
    const int64_t sample = tile.sample + ahead / positions;
    const int position[2] = {int(place / columns), int(place % columns)};
    int64_t output = sample * shape.output.sample, scaled = sample * shape.scaled.sample;
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      scaled += position[axis] * shape.scaled.axis[axis];
      output += (tile.axis[axis].first + int64_t(position[axis]) * shape.stride[axis]) * shape.output.axis[axis];
      // A row that the tile does not have lies outside of everything.
      rows.position[axis][row] = row < tile.rows ? position[axis] : -(1 << 30);
    }
    rows.scaled[row] = scaled;
    rows.output[row] = output;
  }
}

// The taps of a tile's class, one after the other.
struct TapWalk {
  int index[2] = {0, 0};
  int offset[2];           // from a pixel's position in its class to its position above
  int64_t scaled, weight;  // the same, and the tap, in elements

  __device__ __forceinline__ TapWalk(const ProductTile& tile, const ProductShape& shape) { place(tile, shape); }

  __device__ __forceinline__ void next(const ProductTile& tile, const ProductShape& shape) {
    if (++index[1] == tile.axis[1].taps) {
      index[1] = 0;
      ++index[0];
    }
    place(tile, shape);
  }

  __device__ __forceinline__ bool sees(int row, int column, const ProductShape& shape) const {
    return unsigned(row + offset[0]) < unsigned(shape.above[0]) &&
           unsigned(column + offset[1]) < unsigned(shape.above[1]);
  }

 private:
  __device__ __forceinline__ void place(const ProductTile& tile, const ProductShape& shape) {
    scaled = weight = 0;
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      const ClassAxis& along = tile.axis[axis];
      offset[axis] = along.offset - index[axis] * along.offset_step;
      scaled += offset[axis] * shape.scaled.axis[axis];
      weight += (along.tap + index[axis] * along.tap_step) * shape.weight.axis[axis];
    }
  }
};

}  // namespace pxp::cuda
