// The CUDA kernel: a block works on one image at a time, as program.h says. Compiled by NVRTC when it is first needed
// (cuda.cc), so no header of CUDA or of the standard library may be included.
//
// `Program` goes as a parameter, which a kernel may take up to 32,764 bytes of from CUDA 12.1 and compute capability
// 7.0 on. All threads of a block read the same step, so its branches are the same for all of them, as SYNC demands.
#include "launch.h"

// Tests build this file as host C++ and say where shared memory is.
#ifndef SHARED_MEMORY
#define SHARED_MEMORY(name) extern __shared__ unsigned long long name[]
#endif

static_assert(sizeof(Program) + sizeof(Launch) + 64 <= 32764, "a kernel takes no more parameters");

// in: uint8 [batch, height, width, 3]. out: the same shape, of `type` (Output). scratch: launch.words for each block.
extern "C" __global__ void __launch_bounds__(1024, 1) bloodcell_policy(
    const __grid_constant__ Program program, const __grid_constant__ Launch launch, const u8* in, void* out, int type,
    u32* scratch) {
  SHARED_MEMORY(memory);
  const Buffers buffers = buffers_of(program, launch, memory, scratch);
  for (i64 image = blockIdx.x; image < program.batch; image += gridDim.x) {
    run_image(program, image, in, out, type, buffers);
  }
}
