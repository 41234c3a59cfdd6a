#include "policy.h"

namespace bloodcell {
namespace {

struct Expected {
  Type type;
  i64 width;  // -1: any odd number up to 2 kReach + 1
};

std::vector<Expected> fields_of(int code, const int* style) {
  const Expected one_float{Type::kFloat32, 1}, one_int{Type::kInt32, 1}, quadrant{Type::kFloat32, kQuadrant};
  const Expected key{Type::kInt32, 2};
  switch (code) {
    case kWarp: return {{Type::kFloat32, 9}};
    case kTone: return {{Type::kUint8, kCurves}, one_int, one_float};
    case kMix: return {{Type::kFloat32, 12}};
    case kFilter: return {one_float};
    case kMask: return {{Type::kFloat32, 8}};
    case kBlur: return {quadrant};
    case kStreak: return {quadrant, quadrant};
    case kMosaic: return {one_int, one_int};
    case kElastic: return {key, one_float, {Type::kFloat32, -1}, one_float};
    case kStain: return {{Type::kFloat32, 12}, {Type::kFloat32, 256}};
    case kNoise: return {key, one_float};
    case kJpeg: return {one_int, {Type::kInt32, 192}};
    case kMixture: return {{Type::kFloat32, style[0]}, one_float, {Type::kInt32, style[0]}};
    default: return {};
  }
}

bool good_style(int code, const i64* style) {
  switch (code) {
    case kWarp:
    case kElastic:
      return style[0] >= kConstant && style[0] <= kReflect && style[1] >= 0 && style[1] <= 255 && style[2] >= 0 &&
             style[2] <= 1;
    case kRepeat: return style[0] >= 1 && style[0] <= 1024;
    case kMixture: return style[0] >= 1 && style[0] <= 64 && style[1] >= 1 && style[1] <= 1024;
    default: return true;
  }
}

}  // namespace

std::string read_program(const i64* words, size_t count, i64 batch, i64 height, i64 width,
                         const std::vector<Operand>& operands, Program* program) {
  if (height < 1 || width < 1 || height > kMostSide || width > kMostSide) return "expected sides of 1 to 2**14 pixels";
  if (batch < 0 || batch > kMostImages) return "expected 0 to 2**24 images";
  if (count % kWords) return "the program ends within a step";
  if (count / kWords > kMostSteps) return "expected at most 64 steps";
  program->count = static_cast<int>(count / kWords);
  program->height = static_cast<int>(height);
  program->width = static_cast<int>(width);
  program->batch = batch;
  i64 repeats = 0;  // rows for each image, inside a repeat or mixture
  for (int number = 0; number < program->count; ++number) {
    const std::string where = "step " + std::to_string(number) + ": ";
    const i64* word = words + number * kWords;
    Step& step = program->steps[number];
    step = Step{};
    if (word[0] < 0 || word[0] >= kCodes) return where + "unknown code " + std::to_string(word[0]);
    step.code = static_cast<int>(word[0]);
    if (!good_style(step.code, word + 1)) return where + "a style is out of range";
    for (int each = 0; each < kStyles; ++each) step.style[each] = static_cast<int>(word[1 + each]);
    if (step.code == kEnd) {
      if (!repeats) return where + "an end without its beginning";
      repeats = 0;
      continue;
    }
    const bool opens = step.code == kRepeat || step.code == kMixture;
    if (opens && repeats) return where + "a repeat inside a repeat";
    const i64 rows = batch * (repeats ? repeats : 1);
    const auto find = [&](i64 place, Type type, i64 want, int bit, const void** data, u32* wide) -> std::string {
      if (place < 0 || place >= static_cast<i64>(operands.size())) return where + "an operand is missing";
      const Operand& operand = operands[static_cast<size_t>(place)];
      const bool fits = want == -1 ? operand.width % 2 == 1 && operand.width <= 2 * kReach + 1
                                   : operand.width == want || (want == kCurves && operand.width == kCurves / 3);
      if (operand.type != type || !fits || (operand.rows != 1 && operand.rows != rows)) {
        return where + "an operand is of another type or shape";
      }
      *data = operand.data;
      *wide = static_cast<u32>(operand.width);
      if (operand.rows == 1) step.shared |= 1u << bit;
      return "";
    };
    u32 unused = 0;
    const void* on = nullptr;
    if (step.code != kRepeat) {
      const std::string wrong = find(word[1 + kStyles], Type::kBool, 1, 31, &on, &unused);
      if (!wrong.empty()) return wrong;
      step.on = static_cast<const u8*>(on);
    }
    const std::vector<Expected> expected = fields_of(step.code, step.style);
    for (size_t each = 0; each < expected.size(); ++each) {
      const std::string wrong = find(word[2 + kStyles + each], expected[each].type, expected[each].width,
                                     static_cast<int>(each), &step.field[each], &step.width[each]);
      if (!wrong.empty()) return wrong;
    }
    if (opens) repeats = step.code == kRepeat ? step.style[0] : i64{step.style[0]} * step.style[1];
  }
  return repeats ? "a repeat has no end" : "";
}

Needs needs_of(const Program& program) {
  Needs needs;
  for (int number = 0; number < program.count; ++number) {
    const int code = program.steps[number].code;
    needs.planes |= code == kBlur || code == kStreak || code == kElastic || code == kJpeg;
    needs.mixed |= code == kMixture;
  }
  return needs;
}

}  // namespace bloodcell
