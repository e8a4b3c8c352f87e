#include "kernels/mask.cuh"

#include "harness.h"

using namespace pxp::cuda;

extern "C" int mask(const MaskEntry* entries, int64_t count, int64_t blocks) {
  return harness::guarded([&] {
    MaskTable table{};
    if (count > kMaskEntries) throw std::runtime_error("more entries than a table holds");
    std::copy_n(entries, count, table.at);
    simulator::launch(mask_slices, {unsigned(blocks), unsigned(count)}, kThreads, table);
  });
}
extern "C" int64_t mask_entry_size() { return sizeof(MaskEntry); }
