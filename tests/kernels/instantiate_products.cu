// The products as the launch code uses them; see instantiate.cu.
#include "kernels/product.cuh"
#include "kernels/product_general.cuh"

namespace pxp::cuda {

#define PRODUCT(Loop, T)                                                                                          \
  template __global__ void product<Loop<T>>(const T*, const T*, const T*, const T*, T*, Compute<T>*, Compute<T>*, \
                                            const ProductShape);
#define GENERAL(T)    \
  PRODUCT(FmaLoop, T) \
  PRODUCT(DirectLoop, T)
#define TENSOR(T)       \
  PRODUCT(LargeTile, T) \
  PRODUCT(TallTile, T)  \
  PRODUCT(SmallTile, T)

GENERAL(double)
GENERAL(float)
GENERAL(__nv_bfloat16)
GENERAL(__half)
TENSOR(float)
TENSOR(__nv_bfloat16)
TENSOR(__half)

#define COMPUTE(C)                                                                                    \
  template __global__ void product_combine<C>(const C*, const SumsTable<C>, int, const ProductShape); \
  template __global__ void product_heads<C>(const C*, const SumsTable<C>, const ProductShape);
COMPUTE(double)
COMPUTE(float)

}  // namespace pxp::cuda
