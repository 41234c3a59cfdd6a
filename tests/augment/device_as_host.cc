// device.cu as host C++: real threads stand for a block's threads, a barrier for __syncthreads, so that the branches
// which only a GPU takes compute, and wait for each other, under a debugger and under ThreadSanitizer.
//
// What belongs here: CUDA's words in terms of POSIX threads, plain C functions that launch, and those of the
// driver and of NVRTC that cuda.cc and benchmarks/run_cuda_op.py call.
#include <pthread.h>

#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

struct Index {
  unsigned x;
};

struct Block {
  pthread_barrier_t barrier;
  bool waits;
  unsigned long long* shared;
};

static thread_local Index threadIdx, blockIdx, blockDim, gridDim;
static thread_local Block* block_of_thread;

#define __CUDACC__ 1
#define __device__
#define __host__
#define __global__ __attribute__((visibility("default")))
#define __noinline__ noinline_of_device
#define noinline_of_device __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(threads, blocks)
#define SHARED_MEMORY(name) unsigned long long* const name = block_of_thread->shared

static inline void __syncthreads() {
  if (block_of_thread->waits) pthread_barrier_wait(&block_of_thread->barrier);
}

template <typename T>
static inline T atomicAdd(T* place, T amount) {
  return __atomic_fetch_add(place, amount, __ATOMIC_RELAXED);
}

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
#if !defined(__FMA__) && !defined(__aarch64__)
// The host's engine has no fused operations here, and this one is compared with it.
#define fmaf(a, b, c) ((a) * (b) + (c))
#define fma(a, b, c) ((a) * (b) + (c))
#endif

#include "device.cu"
#include "policy.h"

#define VISIBLE extern "C" __attribute__((visibility("default")))

extern "C" void bloodcell_run_generic(const Program* program, i64 image, const u8* in, void* out, int type,
                                      const Buffers* buffers);

// Launches the kernel with `blocks` blocks of `threads` threads, all at once, and waits for it. waits: whether threads
// wait for each other at all; without, a race detector must find something.
VISIBLE void device_launch(const Program* program, const Launch* launch, const void* in, void* out, int type,
                           void* scratch, int blocks, int threads, int waits) {
  std::vector<Block> all(static_cast<size_t>(blocks));
  std::vector<std::thread> started;
  for (int block = 0; block < blocks; ++block) {
    Block& own = all[static_cast<size_t>(block)];
    own.waits = waits != 0;
    own.shared = static_cast<unsigned long long*>(std::malloc(static_cast<size_t>(launch->shared)));
    pthread_barrier_init(&own.barrier, nullptr, static_cast<unsigned>(threads));
    for (int thread = 0; thread < threads; ++thread) {
      started.emplace_back([&, block, thread] {
        block_of_thread = &own;
        threadIdx.x = static_cast<unsigned>(thread);
        blockIdx.x = static_cast<unsigned>(block);
        blockDim.x = static_cast<unsigned>(threads);
        gridDim.x = static_cast<unsigned>(blocks);
        bloodcell_policy(*program, *launch, static_cast<const u8*>(in), out, type, static_cast<u32*>(scratch));
      });
    }
  }
  for (std::thread& each : started) each.join();
  for (Block& own : all) {
    pthread_barrier_destroy(&own.barrier);
    std::free(own.shared);
  }
}

// The memory of a block for an image of this size: bytes of shared memory, and words of global memory in `words`.
VISIBLE i64 device_memory(i64 height, i64 width, int planes, int mixed, i64 most_shared, i64* words) {
  Program program = {};
  program.height = static_cast<int>(height);
  program.width = static_cast<int>(width);
  const Launch launch = launch_of(program, planes != 0, mixed != 0, most_shared);
  *words = launch.words;
  return launch.shared;
}

// As in plain.cc, with another meaning of two arguments. way: "host", the host's engine; "shared" or "global", the
// device's with the images in shared or in global memory; "unguarded", as "global" and nobody waits. threads: of each of
// two blocks.
VISIBLE int bloodcell_apply(const i64* words, i64 word_count, const void* const* data, const int* types,
                            const i64* rows, const i64* widths, i64 operand_count, const u8* in, i64 batch, i64 height,
                            i64 width, void* out, int type, int threads, const char* way, char* message,
                            i64 message_size) {
  std::vector<bloodcell::Operand> operands;
  for (i64 each = 0; each < operand_count; ++each) {
    operands.push_back({data[each], static_cast<bloodcell::Type>(types[each]), rows[each], widths[each]});
  }
  Program program;
  const std::string wrong = bloodcell::read_program(words, static_cast<size_t>(word_count), batch, height, width,
                                                    operands, &program);
  std::strncpy(message, wrong.c_str(), static_cast<size_t>(message_size) - 1);
  message[message_size - 1] = '\0';
  if (!wrong.empty()) return 1;
  const std::string how = way;
  if (how == "host") {
    const size_t area = static_cast<size_t>(height * width), size = static_cast<size_t>(image_words(height, width));
    std::vector<u32> images(2 * size + area);
    std::vector<float> numbers(3 * area + static_cast<size_t>(plane_count(height, width)));
    Shared shared;
    const Buffers buffers = {images.data(), images.data() + size, images.data() + 2 * size, numbers.data() + 3 * area,
                             numbers.data(), &shared};
    for (i64 image = 0; image < batch; ++image) bloodcell_run_generic(&program, image, in, out, type, &buffers);
    return 0;
  }
  const bloodcell::Needs needs = bloodcell::needs_of(program);
  const Launch launch = launch_of(program, needs.planes, needs.mixed, how == "shared" ? 232448 : 0);
  const int blocks = 2;
  // As much as the kernel is promised, and no more: AddressSanitizer watches the end.
  void* scratch = std::malloc(static_cast<size_t>(launch.words * blocks) * sizeof(u32));
  device_launch(&program, &launch, in, out, type, scratch, blocks, threads, how != "unguarded");
  std::free(scratch);
  return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// As much of the driver's and of NVRTC's interface as launches the kernel: a GPU of compute capability 8.0 with two
// multiprocessors, whose memory is the host's, and on which a block has four threads at most
// ---------------------------------------------------------------------------------------------------------------------

VISIBLE int cuInit(unsigned flags) { return flags ? 1 : 0; }
VISIBLE int cuDeviceGet(int* device, int number) { return *device = number, 0; }
VISIBLE int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = context, device; }
VISIBLE int cuCtxSetCurrent(void* context) { return context ? 0 : 201; }
VISIBLE int cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, static_cast<size_t>(size), "host"), 0; }
VISIBLE int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 0 : attribute == 16 ? 2 : attribute == 97 ? 166912 : -1;
  return *value < 0;
}
VISIBLE int cuModuleLoadData(void** module, const char* code) { return *module = module, !*code; }
VISIBLE int cuModuleGetFunction(void** function, void* module, const char* name) {
  return *function = function, !module || std::strcmp(name, "bloodcell_policy") ? 500 : 0;
}
VISIBLE int cuFuncSetAttribute(void*, int attribute, int value) { return attribute != 8 || value != 166912; }
VISIBLE int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t shared) {
  return *blocks = threads > 1024 || shared > 166912 ? 0 : 1, 0;
}
VISIBLE int cuMemAlloc_v2(void** place, size_t size) { return *place = std::malloc(size), *place ? 0 : 2; }
VISIBLE int cuMemFree_v2(void* place) { return std::free(place), 0; }
VISIBLE int cuMemcpyHtoD_v2(void* to, const void* from, size_t size) { return std::memcpy(to, from, size), 0; }
VISIBLE int cuMemcpyDtoH_v2(void* to, const void* from, size_t size) { return std::memcpy(to, from, size), 0; }
VISIBLE int cuEventCreate(void** event, unsigned) { return *event = event, 0; }
VISIBLE int cuEventRecord(void* event, void*) { return event ? 0 : 400; }
VISIBLE int cuEventSynchronize(void* event) { return event ? 0 : 400; }
VISIBLE int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
  return *milliseconds = 50.0f, from && to && from != to ? 0 : 400;
}
VISIBLE int cuStreamGetCtx(void* stream, void** context) { return *context = stream, stream ? 0 : 400; }
VISIBLE int cuCtxPushCurrent_v2(void* context) { return context ? 0 : 201; }
VISIBLE int cuCtxPopCurrent_v2(void** context) { return *context = nullptr, 0; }
VISIBLE int cuCtxGetDevice(int* device) { return *device = 0, 0; }
VISIBLE int cuGetErrorString(int, const char** text) { return *text = "the host's word", 0; }
VISIBLE int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                           unsigned block_y, unsigned block_z, unsigned shared, void*, void** parameters, void** extra) {
  const Launch* launch = static_cast<const Launch*>(parameters[1]);
  if (!function || grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || shared != launch->shared || extra) return 1;
  device_launch(static_cast<const Program*>(parameters[0]), launch, *static_cast<void**>(parameters[2]),
                *static_cast<void**>(parameters[3]), *static_cast<int*>(parameters[4]),
                *static_cast<void**>(parameters[5]), static_cast<int>(grid_x), static_cast<int>(block_x < 4 ? block_x : 4), 1);
  return 0;
}

VISIBLE int nvrtcGetNumSupportedArchs(int* count) { return *count = 3, 0; }
VISIBLE int nvrtcGetSupportedArchs(int* each) { return each[0] = 70, each[1] = 80, each[2] = 90, 0; }
VISIBLE int nvrtcCreateProgram(void** program, const char* source, const char*, int headers, const char* const* texts,
                               const char* const* names) {
  bool good = std::strstr(source, "bloodcell_policy(") && headers == 3;
  for (int each = 0; good && each < headers; ++each) {  // the file that the name says, to its end
    std::string guard = "BLOODCELL_" + std::string(names[each], std::strlen(names[each]) - 2) + "_H_";
    for (char& letter : guard) letter = static_cast<char>(std::toupper(letter));
    const std::string text = texts[each];
    const std::string end = "#endif  // " + guard + "\n";
    good = text.find("#ifndef " + guard) != text.npos && text.rfind(end) == text.size() - end.size();
  }
  return *program = program, good ? 0 : 1;
}
VISIBLE int nvrtcCompileProgram(void*, int count, const char* const* options) {
  for (int each = 0; each < count; ++each) {
    if (!std::strcmp(options[each], "--gpu-architecture=sm_80")) return 0;
  }
  return 6;
}
VISIBLE int nvrtcDestroyProgram(void** program) { return *program = nullptr, 0; }
VISIBLE int nvrtcGetProgramLogSize(void*, size_t* size) { return *size = 1, 0; }
VISIBLE int nvrtcGetProgramLog(void*, char* log) { return *log = '\0', 0; }
VISIBLE int nvrtcGetCUBINSize(void*, size_t* size) { return *size = 5, 0; }
VISIBLE int nvrtcGetCUBIN(void*, char* code) { return std::strcpy(code, "code"), 0; }
VISIBLE int nvrtcGetPTXSize(void*, size_t*) { return 1; }
VISIBLE int nvrtcGetPTX(void*, char*) { return 1; }
