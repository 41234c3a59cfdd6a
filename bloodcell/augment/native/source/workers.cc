#include "workers.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>

#define DECLARE(name) \
  extern "C" void name(const Program* program, i64 image, const u8* in, void* out, int type, const Buffers* buffers);
DECLARE(bloodcell_run_generic)
#if defined(__x86_64__)
DECLARE(bloodcell_run_avx2)
DECLARE(bloodcell_run_avx512)
#endif

namespace bloodcell {
namespace {

using Engine = decltype(&bloodcell_run_generic);

Engine engine_for(const std::string& name) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi");
  if (avx512 && (name.empty() || name == "avx512")) return bloodcell_run_avx512;
  if (avx2 && (name.empty() || name == "avx2")) return bloodcell_run_avx2;
#endif
  return name.empty() || name == "generic" ? bloodcell_run_generic : nullptr;
}

// One thread's memory: as much as the program needs. Every buffer is allocated by itself, so that the address sanitizer
// sees what runs past one of them.
struct Arena {
  explicit Arena(const Program& program) {
    const size_t area = static_cast<size_t>(program.height) * static_cast<size_t>(program.width);
    const Needs needs = needs_of(program);
    const size_t image = static_cast<size_t>(image_words(program.height, program.width));
    buffers.now = take(image);
    buffers.next = take(image);
    buffers.shared = &shared;
    if (needs.mixed) {
      buffers.image = take(area);
      buffers.mixed = reinterpret_cast<float*>(take(3 * area));
    }
    if (needs.planes) {
      buffers.planes = reinterpret_cast<float*>(take(static_cast<size_t>(plane_count(program.height, program.width))));
    }
  }

  u32* take(size_t count) {
    u32* const mine = static_cast<u32*>(std::malloc(count * sizeof(u32)));
    memory[taken++].reset(mine);
    complete = complete && mine;
    return mine;
  }

  struct Free {
    void operator()(u32* memory) const { std::free(memory); }
  };
  std::unique_ptr<u32, Free> memory[5];
  int taken = 0;
  bool complete = true;  // else there was not enough
  Shared shared;
  Buffers buffers{};
};

// What the threads of one call share. A task that starts late finds no image left and touches nothing else, so the
// caller waits for images, not for tasks: a pool whose threads all wait cannot stall it.
struct Call {
  const Program* program;
  const u8* in;
  void* out;
  int type;
  Engine engine;
  i64 images;
  std::atomic<i64> next{0};
  std::atomic<bool> starved{false};
  i64 done = 0;
  std::mutex mutex;
  std::condition_variable finished;
};

void work(const std::shared_ptr<Call>& call) {
  i64 image = call->next.fetch_add(1);
  if (image >= call->images) return;
  i64 mine = 0;
  {
    const Arena arena(*call->program);
    if (!arena.complete) call->starved = true;
    for (; image < call->images; image = call->next.fetch_add(1), ++mine) {
      if (arena.complete) call->engine(call->program, image, call->in, call->out, call->type, &arena.buffers);
    }
  }
  const std::lock_guard<std::mutex> lock(call->mutex);
  call->done += mine;
  if (call->done == call->images) call->finished.notify_all();
}

}  // namespace

std::string run(const Program& program, const u8* in, void* out, int type, int threads, const Schedule& schedule,
                const std::string& instruction_set) {
  const Engine engine = engine_for(instruction_set);
  if (!engine) return "this machine has no instruction set " + instruction_set;
  if (!program.batch) return "";
  const auto call = std::make_shared<Call>();
  call->program = &program;
  call->in = in;
  call->out = out;
  call->type = type;
  call->engine = engine;
  call->images = program.batch;
  for (i64 thread = 1; thread < threads && thread < program.batch; ++thread) schedule([call] { work(call); });
  work(call);
  std::unique_lock<std::mutex> lock(call->mutex);
  call->finished.wait(lock, [&] { return call->done == call->images; });
  return call->starved ? "no memory for an image's buffers" : "";
}

}  // namespace bloodcell
