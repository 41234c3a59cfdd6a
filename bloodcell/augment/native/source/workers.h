// Images shared out among threads. What belongs here: whose turn it is, and memory for each thread.
#ifndef BLOODCELL_WORKERS_H_
#define BLOODCELL_WORKERS_H_

#include <functional>
#include <string>

#include "policy.h"

namespace bloodcell {

// Starts a task on another thread, now or later or never.
using Schedule = std::function<void(std::function<void()>)>;

// Runs a program over all images with `threads` threads, of which the caller is one. Returns what went wrong, or
// nothing. The result does not depend on how many threads there are or when they start.
// instruction_set: "" for the best that this machine has, or "generic", "avx2", "avx512" (tests).
std::string run(const Program& program, const u8* in, void* out, int type, int threads, const Schedule& schedule,
                const std::string& instruction_set = "");

}  // namespace bloodcell

#endif  // BLOODCELL_WORKERS_H_
