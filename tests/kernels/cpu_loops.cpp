// The loops of the CPU kernels on raw memory, a few rows of many; compiled with csrc/cpu/*_loops.cpp.
#include "cpu/loops.h"

using namespace pxp::cpu;

extern "C" {
void run_layer_norm(const LayerNormTask* task, int64_t begin, int64_t end) { baseline::layer_norm(*task, begin, end); }
void run_add_relu(const AddReluTask* task, int64_t begin, int64_t end) { baseline::add_relu(*task, begin, end); }
void run_scale(const EpsilonTask* task, int64_t begin, int64_t end) { baseline::epsilon_scale(*task, begin, end); }
void run_positions(const EpsilonTask* task, int64_t begin, int64_t end) {
  baseline::epsilon_positions(*task, begin, end);
}
void run_units(const EpsilonTask* task, int64_t begin, int64_t end) { baseline::epsilon_units(*task, begin, end); }
void run_combine(const EpsilonTask* task, int64_t begin, int64_t end) { baseline::epsilon_combine(*task, begin, end); }
void run_max_pool(const MaxPoolTask* task, int64_t begin, int64_t end) { baseline::max_pool(*task, begin, end); }
void run_max_pool_epsilon(const MaxPoolTask* task, int64_t begin, int64_t end) {
  baseline::max_pool_epsilon(*task, begin, end);
}
int64_t max_pool_task_size() { return sizeof(MaxPoolTask); }
int64_t add_relu_task_size() { return sizeof(AddReluTask); }
int64_t layer_norm_task_size() { return sizeof(LayerNormTask); }
int64_t epsilon_task_size() { return sizeof(EpsilonTask); }
}
