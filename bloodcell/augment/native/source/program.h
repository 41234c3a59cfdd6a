// What the handlers run: a policy as steps, each with the operands that hold its parameters, and how one image passes
// through them. Python writes the steps (native/program.py); `read_step` in host.cc and device.cc checks them.
#ifndef BLOODCELL_PROGRAM_H_
#define BLOODCELL_PROGRAM_H_

#include "engine.h"

enum Code {
  kWarp, kTone, kMix, kFilter, kMask, kBlur, kStreak, kMosaic, kElastic, kStain, kNoise, kJpeg,
  kRepeat,   // style[0] passes of the steps up to kEnd; each has rows of its own
  kMixture,  // AugMix: style[0] chains, each of style[1] passes of the steps up to kEnd, blended with the image
  kEnd,
  kCodes
};

static const int kMostSteps = 64;  // 5 KiB together, which a CUDA kernel takes as a parameter (device.cu)
static const int kFields = 4;
static const int kStyles = 3;
static const int kWords = 1 + kStyles + 1 + kFields;  // of a step, as Python writes it

// A parameter's row of an image: (offset * batch + image), or the only one. `on` says which rows get the step.
struct Step {
  int code;
  int style[kStyles];
  const u8* on;
  const void* field[kFields];
  u32 shared;  // bit n: field n has one row for all; bit 31: `on` has
  u32 width[kFields];
};

struct Program {
  int count;
  int height, width;
  i64 batch;
  Step steps[kMostSteps];
};

struct Buffers {
  u32* now;
  u32* next;
  u32* image;    // what AugMix blends with
  float* planes;
  float* mixed;  // [3, height, width]
  Shared* shared;
};

static const i64 kCached = 1 << 26;  // bytes of a batch's results that may still be in a cache when they are read

enum Output { kFloat32, kBfloat16, kFloat16, kUint8 };

template <typename T>
FN const T* row_of(const Step& step, int number, i64 row) {
  return (const T*)step.field[number] + (step.shared >> number & 1u ? 0 : row) * (i64)step.width[number];
}

FN bool is_on(const Step& step, i64 row) { return step.on[step.shared >> 31 ? 0 : row] != 0; }

STAGE void run_step(const Step& step, i64 row, Canvas& c) {
  if (!is_on(step, row)) return;
  const Sampling how = {step.style[0], step.style[1], step.style[2]};
  switch (step.code) {
    case kWarp: warp(c, row_of<float>(step, 0, row), how); break;
    case kTone:
      tone(c, *row_of<int>(step, 1, row), *row_of<float>(step, 2, row), row_of<u8>(step, 0, row),
           step.width[0] == kCurves ? 256 : 0);
      break;
    case kMix: mix(c, row_of<float>(step, 0, row)); break;
    case kFilter: filter(c, *row_of<float>(step, 0, row)); break;
    case kMask: {
      const float* f = row_of<float>(step, 0, row);
      const Lattice lattice = {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]};
      mask(c, lattice);
      break;
    }
    case kBlur: convolve(c, row_of<float>(step, 0, row), nullptr); break;
    case kStreak: convolve(c, row_of<float>(step, 0, row), row_of<float>(step, 1, row)); break;
    case kMosaic: mosaic(c, *row_of<int>(step, 0, row), *row_of<int>(step, 1, row)); break;
    case kElastic: {
      const int* key = row_of<int>(step, 0, row);
      const Smoothing smoothing = {row_of<float>(step, 2, row), (int)(step.width[2] / 2), *row_of<float>(step, 3, row)};
      elastic(c, (u32)key[0], (u32)key[1], *row_of<float>(step, 1, row), smoothing, how);
      break;
    }
    case kStain: stain(c, row_of<float>(step, 0, row), row_of<float>(step, 1, row)); break;
    case kNoise: {
      const int* key = row_of<int>(step, 0, row);
      noise(c, (u32)key[0], (u32)key[1], *row_of<float>(step, 1, row));
      break;
    }
    case kJpeg: {
      const int* tables = row_of<int>(step, 1, row);
      const JpegTables all = {tables, tables + 64, tables + 128};
      jpeg(c, *row_of<int>(step, 0, row), all);
      break;
    }
    default: break;
  }
}

// The sum of weighted chains so far. Two products and a sum are one rounding less where the first is fused.
STAGE void add_chain(const Canvas& c, float* mixed, int chain, const float* weights) {
  const int area = pixel_count(c);
  for (int number = 0; number < 3; ++number) {
    float* sum = mixed + (i64)number * area;
    const float weight = weights[chain], before = weights[0];
    const u32* pixels = c.now;
    if (chain == 0) {
      EACH(place, area) sum[place] = level(pixels[place], number);
    } else if (chain == 1) {
      EACH(place, area) sum[place] = fused(before, sum[place], product(weight, level(pixels[place], number)));
    } else {
      EACH(place, area) sum[place] = fused(weight, level(pixels[place], number), sum[place]);
    }
  }
  SYNC;
}

// Runs the chains of the mixture at `steps`, whose own steps end at `end`, and blends them with the image.
STAGE void run_mixture(const Program& p, const Step* steps, const Step* end, i64 image, Canvas& c,
                       const Buffers& buffers) {
  const int chains = steps->style[0], passes = steps->style[1];
  const float* weights = row_of<float>(*steps, 0, image);
  const float share = *row_of<float>(*steps, 1, image);
  const int* depth = row_of<int>(*steps, 2, image);
  const int area = pixel_count(c);
  u32* original = buffers.image;
  EACH(place, area) original[place] = c.now[place];
  SYNC;
  for (int chain = 0; chain < chains; ++chain) {
    if (chain) {
      EACH(place, area) c.now[place] = original[place];
      SYNC;
    }
    for (int pass = 0; pass < passes && pass < depth[chain]; ++pass) {
      const i64 row = ((i64)pass * chains + chain) * p.batch + image;
      for (const Step* step = steps + 1; step != end; ++step) run_step(*step, row, c);
    }
    add_chain(c, buffers.mixed, chain, weights);
  }
  const float only = weights[0];
  for (int number = 0; number < 3; ++number) {
    const float* mixed = buffers.mixed + (i64)number * area;
    u32* pixels = c.now;
    EACH(place, area) {
      const float own = level(original[place], number);
      const float apart = chains == 1 ? fused(only, mixed[place], -own) : mixed[place] - own;
      const u32 value = (u32)to_level(fused(share, apart, own) + 0.5f) << (8 * number);
      pixels[place] = number ? pixels[place] | value : value;
    }
    SYNC;
  }
}

FN const Step* end_of(const Step* step) {
  while (step->code != kEnd) ++step;
  return step;
}

STAGE void load(Canvas& c, const u8* in) {
  u32* pixels = c.now;
  const int area = pixel_count(c);
  int first = 0;
#ifdef __AVX512VBMI__
  first = join_bytes(in, pixels, area);
#endif
  EACH(rest, area - first) {
    const u8* from = in + 3 * (i64)(first + rest);
    pixels[first + rest] = join(from[0], from[1], from[2]);
  }
  EACH(place, c.width + 1) c.now[area + place] = c.next[area + place] = 0;
  SYNC;
}

FN u16 half_of(int value) {  // a whole number up to 255 as IEEE half precision, exact
  const u32 bits = as_bits((float)value);
  return (u16)(value ? ((bits >> 23) - 112u) << 10 | (bits >> 13 & 0x3FFu) : 0u);
}

// `around`: the caches will not hold the results of a batch in any case.
STAGE void store(const Canvas& c, void* out, int type, [[maybe_unused]] bool around) {
  int first = 0;
#ifdef __AVX512VBMI__
  if (type == kFloat32) first = part_bytes(c.now, (float*)out, pixel_count(c), around);
#endif
  const u32* pixels = c.now + first;
  const int area = pixel_count(c) - first;
#define STORE(kind, convert) { \
    kind* to = (kind*)out + 3 * (i64)first; \
    EACH(place, area) { \
      const u32 pixel = pixels[place]; \
      to[3 * place] = convert(channel(pixel, 0)); \
      to[3 * place + 1] = convert(channel(pixel, 1)); \
      to[3 * place + 2] = convert(channel(pixel, 2)); \
    } \
  }
#define BRAIN(value) (u16)(as_bits((float)(value)) >> 16)  // eight bits of mantissa hold it exactly
  if (type == kFloat32) STORE(float, (float))
  else if (type == kBfloat16) STORE(u16, BRAIN)
  else if (type == kFloat16) STORE(u16, half_of)
  else STORE(u8, (u8))
#undef BRAIN
#undef STORE
  SYNC;
}

FN int size_of(int type) { return type == kFloat32 ? 4 : type == kUint8 ? 1 : 2; }

// One image from `in` (uint8 [batch, height, width, 3]) to `out` (the same shape, of `type`).
FN void run_image(const Program& p, i64 image, const u8* in, void* out, int type, const Buffers& buffers) {
  const i64 values = (i64)p.height * p.width * 3;
  Canvas c = {p.height, p.width, buffers.now, buffers.next, buffers.planes, buffers.shared};
  load(c, in + image * values);
  const Step* const last = p.steps + p.count;
  for (const Step* step = p.steps; step != last; ++step) {
    if (step->code != kRepeat && step->code != kMixture) {
      run_step(*step, image, c);
      continue;
    }
    const Step* end = end_of(step);
    if (step->code == kMixture) {
      if (is_on(*step, image)) run_mixture(p, step, end, image, c, buffers);
    } else {
      for (int pass = 0; pass < step->style[0]; ++pass) {
        for (const Step* each = step + 1; each != end; ++each) run_step(*each, pass * p.batch + image, c);
      }
    }
    step = end;
  }
  store(c, (u8*)out + image * values * size_of(type), type, p.batch * values * size_of(type) > kCached);
}

#endif  // BLOODCELL_PROGRAM_H_
