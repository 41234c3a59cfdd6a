// The engine for one instruction set. Built once for each with ISA set to its name; nothing here comes from a header of
// the standard library, whose inline functions the linker would share between instruction sets.
#include "program.h"

extern "C" __attribute__((visibility("hidden"))) void ISA(
    const Program* program, i64 image, const u8* in, void* out, int type, const Buffers* buffers) {
  run_image(*program, image, in, out, type, *buffers);
}
