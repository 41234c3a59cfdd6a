// From a policy as Python writes it to checked steps. What belongs here: checking. No XLA, no threads, no CUDA.
#ifndef BLOODCELL_POLICY_H_
#define BLOODCELL_POLICY_H_

#include <string>
#include <vector>

#include "program.h"

namespace bloodcell {

enum class Type { kBool, kUint8, kInt32, kFloat32, kOther };

// An array that a step reads: `rows` along the first axis, `width` numbers in each.
struct Operand {
  const void* data;
  Type type;
  i64 rows;
  i64 width;
};

// Most pixels down or across an image: pixels count in 32 bits, borders included, a place is exact as a float, and the
// mean of a mosaic's cell as wide as the image is right.
constexpr i64 kMostSide = i64{1} << 14;
constexpr i64 kMostImages = i64{1} << 24;  // of a batch

// Writes the steps of `words` (kWords each, see native/program.py) on images of [batch, height, width, 3] to `program`.
// Returns what is wrong with them, or nothing. Follows no pointer, which may be a device's.
std::string read_program(const i64* words, size_t count, i64 batch, i64 height, i64 width,
                         const std::vector<Operand>& operands, Program* program);

// Which buffers a program needs besides two images.
struct Needs {
  bool planes = false;
  bool mixed = false;
};
Needs needs_of(const Program& program);

}  // namespace bloodcell

#endif  // BLOODCELL_POLICY_H_
