// Where a block of the CUDA kernel finds its memory. The host computes it, the kernel follows it.
#ifndef BLOODCELL_LAUNCH_H_
#define BLOODCELL_LAUNCH_H_

#include "program.h"

// All of `Shared` is in shared memory, and both images too where they fit; the rest is each block's own global memory.
struct Launch {
  i64 words;   // of global memory for each block, of 4 bytes
  i64 shared;  // bytes of shared memory for each block
  int resident;  // whether the images are in shared memory
  int mixed;     // whether there is memory for a mixture
};

static const i64 kAligned = 64;  // words: each block's memory starts on a line of the cache

#ifdef __CUDACC__
FN Buffers buffers_of(const Program& p, const Launch& launch, unsigned long long* shared, u32* scratch) {
  const i64 area = (i64)p.height * p.width, image = image_words(p.height, p.width);
  u32* next = scratch + (i64)blockIdx.x * launch.words;
  u32* images = launch.resident ? (u32*)((Shared*)shared + 1) : next;
  next += launch.resident ? 0 : 2 * image;
  Buffers buffers = {images, images + image, next, nullptr, nullptr, (Shared*)shared};
  next += launch.mixed ? area : 0;
  buffers.mixed = (float*)next;
  next += launch.mixed ? 3 * area : 0;
  buffers.planes = (float*)next;
  return buffers;
}
#endif

// most_shared: bytes that a block may have. planes, mixed: what policy.h's needs_of says.
BOTH Launch launch_of(const Program& p, bool planes, bool mixed, i64 most_shared) {
  const i64 area = (i64)p.height * p.width, images = 2 * image_words(p.height, p.width);
  const i64 own = (i64)sizeof(Shared), both = own + images * (i64)sizeof(u32);
  Launch launch = {};
  launch.resident = both <= most_shared;
  launch.mixed = mixed;
  launch.shared = launch.resident ? both : own;
  launch.words = (launch.resident ? 0 : images) + (mixed ? 4 * area : 0);
  if (planes) launch.words += plane_count(p.height, p.width);
  launch.words = (launch.words + kAligned - 1) / kAligned * kAligned;
  return launch;
}

#endif  // BLOODCELL_LAUNCH_H_
