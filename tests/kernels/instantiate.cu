// All kernels as the launch code uses them, without the launch code: what ptxas says about them is what counts.
#include "kernels/accumulate.cuh"
#include "kernels/add_relu.cuh"
#include "kernels/epsilon.cuh"
#include "kernels/layer_norm.cuh"
#include "kernels/mask.cuh"
#include "kernels/max_pool.cuh"
#include "kernels/select.cuh"

namespace pxp::cuda {

#define POSITIONS(T, V, R)                                                                                   \
  template __global__ void epsilon_positions<T, V, R>(const T*, const T*, T*, const EpsilonSums<Compute<T>>, \
                                                      const EpsilonShape);
#define UNITS(T, V)                                                                                    \
  template __global__ void epsilon_units<T, V>(const T*, const T*, T*, const EpsilonSums<Compute<T>>,  \
                                               const EpsilonShape, int, int64_t);                      \
  template __global__ void epsilon_groups<T, V>(const T*, const T*, T*, const EpsilonSums<Compute<T>>, \
                                                const EpsilonShape, int);
#define NORM(T, V, R)                                                                                         \
  template __global__ void layer_norm_rows<T, V, R>(const T*, const T*, const Compute<T>*, const Compute<T>*, \
                                                    const T*, const T*, T*, int64_t, int64_t, double);
#define SUM(T, V) template __global__ void add_relu_elements<T, V>(const T*, const T*, T*, int64_t);
#define POOL(T, V)                                                                                                 \
  template __global__ void max_pool_winners<T, V, false>(const T*, T*, const MaxPoolShape);                        \
  template __global__ void max_pool_winners<T, V, true>(const T*, uint16_t*, const MaxPoolShape);                  \
  template __global__ void max_pool_carry<T, V>(const MaxPoolCarry<T>, const MaxPoolShape, int, int64_t);
#define ALL(T)                       \
  POSITIONS(T, 1, kWarp)             \
  POSITIONS(T, 1, kThreads)          \
  POSITIONS(T, kVector<T>, kWarp)    \
  POSITIONS(T, kVector<T>, kThreads) \
  UNITS(T, 1)                        \
  UNITS(T, kVector<T>)               \
  NORM(T, 1, kWarp)                  \
  NORM(T, 1, kThreads)               \
  NORM(T, kVector<T>, kWarp)         \
  NORM(T, kVector<T>, kThreads)      \
  SUM(T, 1)                          \
  SUM(T, kVector<T>)                 \
  POOL(T, 1)                         \
  POOL(T, kVector<T>)                \
  template __global__ void radix_select<T>(const T*, bool*, int64_t, int64_t, bool);

ALL(double)
ALL(float)
ALL(__half)
ALL(__nv_bfloat16)

#define COMPUTE(C)                                                                                   \
  template __global__ void max_pool_combine<C>(const C*, C*, int64_t, int64_t, const MaxPoolShape, int64_t); \
  template __global__ void epsilon_combine<C>(const C*, const EpsilonSums<C>, int64_t, int64_t, int64_t); \
  template __global__ void accumulate_units<C>(double*, const C*, const int64_t*, int64_t, int64_t); \
  template __global__ void accumulate_classes<C>(double*, const C*, const int64_t*, int64_t, int64_t, int64_t);
COMPUTE(double)
COMPUTE(float)

}  // namespace pxp::cuda
