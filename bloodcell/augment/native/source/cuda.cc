// The XLA-FFI handler of NVIDIA's GPUs, `bloodcell_policy`: it compiles device.cu for the GPU at hand when it is first
// called there, and launches it on XLA's stream.
//
// It needs nothing of CUDA where it is built: driver and NVRTC are opened when they are needed, and the few functions
// used are declared here. On a machine without them nothing of this is ever called.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "call.h"
#include "launch.h"

namespace ffi = xla::ffi;

// The kernel's sources, as they are when this is built.
#define EMBED(name, file)                                                          \
  __asm__(".pushsection .rodata\n.local " #name "\n" #name ":\n.incbin \"" file "\"\n" \
          ".byte 0\n.popsection\n");                                               \
  extern "C" __attribute__((visibility("hidden"))) const char name[];
EMBED(bloodcell_device_cu, "device.cu")
EMBED(bloodcell_launch_h, "launch.h")
EMBED(bloodcell_program_h, "program.h")
EMBED(bloodcell_engine_h, "engine.h")

namespace {

constexpr int kThreads = 512;  // of a block; the kernel takes up to 1024

// ---------------------------------------------------------------------------------------------------------------------
// The driver and the compiler, by their C interfaces: all return 0 on success
// ---------------------------------------------------------------------------------------------------------------------

enum { kMultiprocessors = 16, kMajor = 75, kMinor = 76, kSharedMost = 97 };  // CUdevice_attribute
enum { kFunctionShared = 8 };                                                // CUfunction_attribute

struct Driver {
  int (*stream_context)(void* stream, void** context);
  int (*push)(void* context);
  int (*pop)(void** context);
  int (*device)(int* device);
  int (*attribute)(int* value, int attribute, int device);
  int (*load)(void** module, const void* image);
  int (*function)(void** function, void* module, const char* name);
  int (*set)(void* function, int attribute, int value);
  int (*resident)(int* blocks, void* function, int threads, size_t shared);
  int (*launch)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra);
  int (*word)(int result, const char** text);
};

struct Compiler {
  int (*create)(void** program, const char* source, const char* name, int headers, const char* const* texts,
                const char* const* names);
  int (*compile)(void* program, int options, const char* const* option);
  int (*destroy)(void** program);
  int (*log_size)(void* program, size_t* size);
  int (*log)(void* program, char* log);
  int (*binary_size)(void* program, size_t* size);
  int (*binary)(void* program, char* binary);
  int (*text_size)(void* program, size_t* size);
  int (*text)(void* program, char* text);
  int (*count)(int* architectures);
  int (*architectures)(int* each);
};

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

std::string& nvrtc_path() {
  static std::string* const path = new std::string;  // never destroyed: a handler may run while the process ends
  return *path;
}

// Returns what is wrong, or nothing.
std::string open_driver(Driver* d) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return "the CUDA driver (libcuda.so.1) cannot be loaded";
  const bool all = find(library, "cuStreamGetCtx", &d->stream_context) &&
                   find(library, "cuCtxPushCurrent_v2", &d->push) && find(library, "cuCtxPopCurrent_v2", &d->pop) &&
                   find(library, "cuCtxGetDevice", &d->device) &&
                   find(library, "cuDeviceGetAttribute", &d->attribute) &&
                   find(library, "cuModuleLoadData", &d->load) && find(library, "cuModuleGetFunction", &d->function) &&
                   find(library, "cuFuncSetAttribute", &d->set) &&
                   find(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", &d->resident) &&
                   find(library, "cuLaunchKernel", &d->launch) && find(library, "cuGetErrorString", &d->word);
  return all ? "" : "the CUDA driver (libcuda.so.1) lacks a function";
}

std::string open_compiler(Compiler* c) {
  void* library = nullptr;
  for (const char* name : {nvrtc_path().c_str(), "libnvrtc.so.12", "libnvrtc.so.13"}) {
    if (!library && *name) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (!library) return "NVRTC (libnvrtc.so.12) cannot be loaded; pip install nvidia-cuda-nvrtc-cu12 brings it";
  const bool all = find(library, "nvrtcCreateProgram", &c->create) &&
                   find(library, "nvrtcCompileProgram", &c->compile) &&
                   find(library, "nvrtcDestroyProgram", &c->destroy) &&
                   find(library, "nvrtcGetProgramLogSize", &c->log_size) &&
                   find(library, "nvrtcGetProgramLog", &c->log) &&
                   find(library, "nvrtcGetCUBINSize", &c->binary_size) && find(library, "nvrtcGetCUBIN", &c->binary) &&
                   find(library, "nvrtcGetPTXSize", &c->text_size) && find(library, "nvrtcGetPTX", &c->text) &&
                   find(library, "nvrtcGetNumSupportedArchs", &c->count) &&
                   find(library, "nvrtcGetSupportedArchs", &c->architectures);
  return all ? "" : "NVRTC lacks a function; version 12 is expected";
}

// ---------------------------------------------------------------------------------------------------------------------
// From source to a kernel
// ---------------------------------------------------------------------------------------------------------------------

// Compiles for compute capability `wanted` (90 for 9.0): to machine code or, for a GPU that is newer than the compiler,
// to PTX of the newest that it knows. Machine code does not ask how old the driver is, which PTX does.
std::string compile(int wanted, std::string* image) {
  Compiler c{};
  std::string wrong = open_compiler(&c);
  if (!wrong.empty()) return wrong;
  int known = 0, best = 0;
  if (c.count(&known)) return "NVRTC does not say what it compiles for";
  std::vector<int> all(static_cast<size_t>(known > 0 ? known : 1));
  if (c.architectures(all.data())) return "NVRTC does not say what it compiles for";
  for (int each : all) best = each <= wanted && each > best ? each : best;
  if (best < 70) return "expected a GPU of compute capability 7.0 or more that NVRTC knows";
  const bool exact = best == wanted;
  const std::string target = std::string("--gpu-architecture=") + (exact ? "sm_" : "compute_") + std::to_string(best);
  // --fmad=false: a product and a sum are fused only where the source says so, as on the host.
  const char* const options[] = {target.c_str(), "--std=c++17", "--fmad=false"};
  const char* const texts[] = {bloodcell_engine_h, bloodcell_program_h, bloodcell_launch_h};
  const char* const names[] = {"engine.h", "program.h", "launch.h"};
  void* program = nullptr;
  if (c.create(&program, bloodcell_device_cu, "device.cu", 3, texts, names)) return "NVRTC takes no source";
  if (c.compile(program, 3, options)) {
    size_t size = 0;
    c.log_size(program, &size);
    std::string log(size + 1, '\0');
    c.log(program, log.data());
    wrong = "NVRTC refuses device.cu: " + log.substr(0, log.find_first_of(std::string("\n\0", 2)));
  } else {
    size_t size = 0;
    if (exact ? c.binary_size(program, &size) : c.text_size(program, &size)) wrong = "NVRTC gives no kernel";
    image->assign(size, '\0');
    if (wrong.empty() && (exact ? c.binary(program, image->data()) : c.text(program, image->data()))) {
      wrong = "NVRTC gives no kernel";
    }
  }
  c.destroy(&program);
  return wrong;
}

// What is known of one context's device.
struct Ready {
  std::string wrong;  // why there is no kernel here, or nothing
  void* function = nullptr;
  int multiprocessors = 0;
  int most_shared = 0;
};

std::string said(const Driver& d, const char* what, int result) {
  const char* word = nullptr;
  d.word(result, &word);
  return std::string(what) + ": " + (word ? word : "unknown error") + " (CUDA " + std::to_string(result) + ")";
}

// In the context that is current.
Ready prepare_here(const Driver& d) {
  static auto* const images = new std::map<int, std::string>;  // by compute capability; called under a lock
  Ready ready;
  int device = 0, major = 0, minor = 0;
  int result = d.device(&device);
  if (!result) result = d.attribute(&major, kMajor, device);
  if (!result) result = d.attribute(&minor, kMinor, device);
  if (!result) result = d.attribute(&ready.multiprocessors, kMultiprocessors, device);
  if (!result) result = d.attribute(&ready.most_shared, kSharedMost, device);
  if (result) {
    ready.wrong = said(d, "the GPU does not say what it is", result);
    return ready;
  }
  std::string& image = (*images)[10 * major + minor];
  if (image.empty()) ready.wrong = compile(10 * major + minor, &image);
  if (!ready.wrong.empty()) {
    image.clear();
    return ready;
  }
  void* module = nullptr;  // stays for the life of the process, as the context does
  result = d.load(&module, image.data());
  if (!result) result = d.function(&ready.function, module, "bloodcell_policy");
  if (!result) result = d.set(ready.function, kFunctionShared, ready.most_shared);
  if (result) ready.wrong = said(d, "the kernel cannot be loaded", result);
  return ready;
}

const Ready& ready_for(const Driver& d, void* context) {
  static std::mutex* const mutex = new std::mutex;
  static auto* const contexts = new std::map<void*, Ready>;
  const std::lock_guard<std::mutex> lock(*mutex);
  const auto found = contexts->find(context);
  if (found != contexts->end()) return found->second;
  return contexts->emplace(context, prepare_here(d)).first->second;
}

// ---------------------------------------------------------------------------------------------------------------------
// The call
// ---------------------------------------------------------------------------------------------------------------------

// In the stream's context. Returns what is wrong, or nothing.
std::string launch_here(const Driver& d, const Ready& ready, void* stream, ffi::ScratchAllocator* memory,
                        Program* program, const void* in, void* out, int type) {
  if (!ready.wrong.empty()) return ready.wrong;
  const bloodcell::Needs needs = bloodcell::needs_of(*program);
  Launch launch = launch_of(*program, needs.planes, needs.mixed, ready.most_shared);
  int blocks = 0;
  int result = d.resident(&blocks, ready.function, kThreads, static_cast<size_t>(launch.shared));
  if (result) return said(d, "the kernel cannot be placed", result);
  if (blocks < 1) return "a multiprocessor has no room for the kernel";
  const i64 most = i64{blocks} * ready.multiprocessors;
  const i64 grid = program->batch < most ? program->batch : most;
  void* scratch = nullptr;
  if (launch.words) {
    const auto given = memory->Allocate(static_cast<size_t>(grid * launch.words) * sizeof(u32), 256);
    if (!given.has_value()) return "no GPU memory for the images' buffers";
    scratch = *given;
  }
  void* parameters[] = {program, &launch, &in, &out, &type, &scratch};
  result = d.launch(ready.function, static_cast<unsigned>(grid), 1, 1, kThreads, 1, 1,
                    static_cast<unsigned>(launch.shared), stream, parameters, nullptr);
  return result ? said(d, "the kernel cannot be launched", result) : "";
}

ffi::Error apply(void* stream, ffi::ScratchAllocator memory, ffi::Span<const int64_t> words, ffi::AnyBuffer images,
                 ffi::RemainingArgs fields, ffi::Result<ffi::AnyBuffer> out) {
  Program program;
  int type = 0;
  if (ffi::Error error = bloodcell::read_call(words, images, fields, out, &program, &type); error.failure()) {
    return error;
  }
  if (!program.batch) return ffi::Error::Success();
  struct Opened {
    Driver driver{};
    std::string wrong = open_driver(&driver);
  };
  static const Opened* const opened = new Opened;
  if (!opened->wrong.empty()) return ffi::Error(ffi::ErrorCode::kUnavailable, opened->wrong);
  const Driver& d = opened->driver;
  void *context = nullptr, *unused = nullptr;
  int result = d.stream_context(stream, &context);
  if (!result) result = d.push(context);
  if (result) return ffi::Error(ffi::ErrorCode::kInternal, said(d, "the stream has no context", result));
  const std::string wrong = launch_here(d, ready_for(d, context), stream, &memory, &program, images.untyped_data(),
                                        out->untyped_data(), type);
  d.pop(&unused);
  return wrong.empty() ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kInternal, wrong);
}

XLA_FFI_DEFINE_HANDLER(handler, apply,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<void*>>()
                           .Ctx<ffi::ScratchAllocator>()
                           .Attr<ffi::Span<const int64_t>>("steps")
                           .Arg<ffi::AnyBuffer>()
                           .RemainingArgs()
                           .Ret<ffi::AnyBuffer>());
XLA_FFI_REGISTER_HANDLER(xla::ffi::GetXlaFfiApi(), "bloodcell_policy", "CUDA", handler);

}  // namespace

// Where NVRTC lies, for the first call on a GPU; the system's own is taken where nothing was said.
extern "C" __attribute__((visibility("default"))) void bloodcell_nvrtc(const char* path) { nvrtc_path() = path; }

// Compiles the kernel for a compute capability, without a GPU. Returns 0, or 1 with what is wrong in `message`.
extern "C" __attribute__((visibility("default"))) int bloodcell_compile_cuda(int capability, char* message,
                                                                             long long size) {
  std::string image;
  const std::string wrong = compile(capability, &image);
  std::snprintf(message, static_cast<size_t>(size), "%s", wrong.c_str());
  return wrong.empty() ? 0 : 1;
}
