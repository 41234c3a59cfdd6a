// The engine by a plain C call, without XLA: for tests under sanitizers, fuzzing and counting cycles.
#include <cstring>
#include <functional>
#include <thread>

#include "workers.h"

// Applies a program. Every array is the caller's. Returns 0, or 1 with what is wrong in `message`.
// types: 0 bool, 1 uint8, 2 int32, 3 float32. type: of `out`, as Output in program.h.
extern "C" __attribute__((visibility("default"))) int bloodcell_apply(
    const i64* words, i64 word_count, const void* const* data, const int* types, const i64* rows, const i64* widths,
    i64 operand_count, const u8* in, i64 batch, i64 height, i64 width, void* out, int type, int threads,
    const char* instruction_set, char* message, i64 message_size) {
  std::vector<bloodcell::Operand> operands;
  for (i64 each = 0; each < operand_count; ++each) {
    operands.push_back({data[each], static_cast<bloodcell::Type>(types[each]), rows[each], widths[each]});
  }
  Program program;
  std::string wrong = bloodcell::read_program(words, static_cast<size_t>(word_count), batch, height, width, operands,
                                              &program);
  if (wrong.empty()) {
    std::vector<std::thread> started;
    wrong = bloodcell::run(program, in, out, type, threads,
                           [&](std::function<void()> task) { started.emplace_back(std::move(task)); }, instruction_set);
    for (std::thread& each : started) each.join();
  }
  if (wrong.empty()) return 0;
  std::strncpy(message, wrong.c_str(), static_cast<size_t>(message_size) - 1);
  message[message_size - 1] = '\0';
  return 1;
}
