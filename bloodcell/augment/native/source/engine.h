// A whole lowered policy on one image at a time, which stays in cache (or in a block's shared memory) from the first
// stage to the last.
//
// The same text is compiled for every instruction set of the host and for CUDA. On the host one thread owns an image
// and the loops below vectorise; on a GPU one block does, its threads share out the iterations of EACH, and SYNC keeps
// them together. So nothing here may allocate, throw, or use the standard library, and a loop body may write only to
// its own place (or through COUNT).
//
// The arithmetic is that of the XLA path (bloodcell/augment/primitives), operation by operation, with a multiplication
// and an addition fused where XLA's backends fuse them: the first product of a sum into the addition, a later one into
// the sum so far. Where the host has no such instruction, XLA has none either.
//
// What belongs here: arithmetic. Reading operands and sharing out images is host.cc's and device.cu's business.
#ifndef BLOODCELL_ENGINE_H_
#define BLOODCELL_ENGINE_H_

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#ifdef __CUDACC__
#define FN static __device__ inline
#define STAGE static __device__ __noinline__  // inlined at every call they take a minute to compile, and spill
#define BOTH static inline __host__ __device__
#define EACH(i, count) for (int i = threadIdx.x, end_##i = (count); i < end_##i; i += blockDim.x)
#define ROLLED _Pragma("unroll 1")  // a loop that would not fit registers
#define SYNC __syncthreads()
#define COUNT(place) atomicAdd(&(place), 1u)
#define TOTAL(place, amount) atomicAdd(&(place), (unsigned long long)(amount))
FN float floor_of(float x) { return floorf(x); }
FN float root_of(float x) { return sqrtf(x); }
FN float fused(float a, float b, float c) { return fmaf(a, b, c); }
FN float product(float a, float b) { return __fmul_rn(a, b); }
FN double product(double a, double b) { return __dmul_rn(a, b); }
FN float quotient(float a, float b) { return __fdiv_rn(a, b); }
FN float as_float(u32 bits) { return __uint_as_float(bits); }
FN u32 as_bits(float x) { return __float_as_uint(x); }
#else
#define FN static inline __attribute__((always_inline))
#define STAGE static __attribute__((noinline))  // else each would be compiled again wherever it is called
#define BOTH static inline
// Iterations are independent of one another, which the compiler cannot know of buffers that it cannot tell apart.
#define EACH(i, count) _Pragma("GCC ivdep") for (int i = 0, end_##i = (count); i < end_##i; ++i)
#define ROLLED
#define SYNC
#define COUNT(place) (++(place))
#define TOTAL(place, amount) ((place) += (unsigned long long)(amount))
FN float floor_of(float x) { return __builtin_floorf(x); }
FN float root_of(float x) { return __builtin_sqrtf(x); }
#if defined(__FMA__) || defined(__aarch64__)
FN float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
FN float fused(float a, float b, float c) { return a * b + c; }
#endif
FN float product(float a, float b) { return a * b; }  // -ffp-contract=off keeps it apart
FN double product(double a, double b) { return a * b; }
FN float quotient(float a, float b) { return a / b; }
FN float as_float(u32 bits) { float x; __builtin_memcpy(&x, &bits, 4); return x; }
FN u32 as_bits(float x) { u32 bits; __builtin_memcpy(&bits, &x, 4); return bits; }
#endif

#ifdef __AVX512VBMI__
#include "bytes.h"
#endif

// For stages of arithmetic without fetching. The others are compiled for 256 bits in any case: compilers fill registers
// word by word, at which 512 bits were slower (docs/performance.md).
#if defined(__AVX512VBMI__) && !defined(__clang__)
#define WIDE __attribute__((target("prefer-vector-width=512")))
#else
#define WIDE
#endif

FN int least(int a, int b) { return a < b ? a : b; }
FN int greatest(int a, int b) { return a > b ? a : b; }
FN int within(int x, int low, int high) { return x < low ? low : x > high ? high : x; }
// Not-a-number ends at `low`, and no value ever leaves the bounds.
FN float within(float x, float low, float high) {
  float above = x > low ? x : low;
  return above < high ? above : high;
}
FN int to_level(float x) { return (int)within(x, 0.0f, 255.0f); }

// ---------------------------------------------------------------------------------------------------------------------
// What an image is while it is worked on
// ---------------------------------------------------------------------------------------------------------------------

static const int kRadius = 12;                // as primitives/blur.py
static const int kCurves = 3 * 256;            // entries of a tone's curves; a third of it where channels share one
static const int kReach = 256;                // of an elastic field's Gaussian, at most
static const int kQuadrant = (kRadius + 1) * (kRadius + 1);
static const int kTaps = (2 * kRadius + 1) * (2 * kRadius + 1);

// The kernel's weights, or the image's counts, curves and tables: whatever a stage prepares once for all pixels.
struct Shared {
  u32 histogram[3][256];
  unsigned long long luma;
  u8 curve[3][256];
  float weight[kTaps];
  signed char tap_y[kTaps], tap_x[kTaps];  // so that two blocks of 96x96 images share a multiprocessor of sm_80
  int taps;
  int radius;
  int separable;
};

// red, green, blue in bits 0-7, 8-15, 16-23 of `now`; a stage reads `now`, writes `next` and swaps them. Each has
// `image_words(height, width)` words. `planes` holds `plane_count(height, width)` numbers.
struct Canvas {
  int height, width;
  u32* now;
  u32* next;
  float* planes;
  Shared* shared;
};

FN int pixel_count(const Canvas& c) { return c.height * c.width; }

// A row and a pixel more than an image has: the neighbours of the last row and column, which count for nothing, are read
// like any other.
BOTH i64 image_words(i64 height, i64 width) { return (height + 1) * width + 1; }

// The stages that need most: blur, a mirrored border about three channels beside three results, which is more than the
// three fields and a row with its mirror images that elastic needs; jpeg, whole blocks.
BOTH i64 plane_count(i64 height, i64 width) {
  i64 bordered = (height + 2 * kRadius) * (width + 2 * kRadius);
  i64 blocks = ((height + 15) / 16 * 16) * ((width + 15) / 16 * 16);
  i64 most = bordered * 3 + height * width * 3;
  return most > 2 * blocks ? most : 2 * blocks;
}

FN void swap(Canvas& c) {
  u32* other = c.now;
  c.now = c.next;
  c.next = other;
}

FN int channel(u32 pixel, int number) { return (int)(pixel >> (8 * number) & 255u); }
FN u32 join(int red, int green, int blue) { return (u32)red | (u32)green << 8 | (u32)blue << 16; }
FN float level(u32 pixel, int number) { return (float)channel(pixel, number); }

// ---------------------------------------------------------------------------------------------------------------------
// Random bits: augment/rng.py
// ---------------------------------------------------------------------------------------------------------------------

FN u32 turned(u32 x, int by) { return x << by | x >> (32 - by); }

#define ROUND(by) x0 += x1; x1 = turned(x1, by) ^ x0;
// Threefry-2x32 with 20 rounds (Salmon et al., SC 2011) of the counter (number, 0).
FN void threefry(u32 key0, u32 key1, u32 number, u32& first, u32& second) {
  u32 key2 = key0 ^ key1 ^ 0x1BD11BDAu;
  u32 x0 = number + key0, x1 = key1;
  ROUND(13) ROUND(15) ROUND(26) ROUND(6) x0 += key1; x1 += key2 + 1u;
  ROUND(17) ROUND(29) ROUND(16) ROUND(24) x0 += key2; x1 += key0 + 2u;
  ROUND(13) ROUND(15) ROUND(26) ROUND(6) x0 += key0; x1 += key1 + 3u;
  ROUND(17) ROUND(29) ROUND(16) ROUND(24) x0 += key1; x1 += key2 + 4u;
  ROUND(13) ROUND(15) ROUND(26) ROUND(6) x0 += key2; x1 += key0 + 5u;
  first = x0;
  second = x1;
}
#undef ROUND

// Natural logarithm of a positive normal number: 2 artanh((m - 1) / (m + 1)) of the mantissa; within 2e-7.
FN float log_of(float x) {
  u32 bits = as_bits(x);
  int exponent = (int)((bits + 0x004AFB0Du) >> 23) - 127;  // the mantissa from sqrt(1/2) on, to sqrt(2)
  float mantissa = as_float(bits - ((u32)exponent << 23));
  float s = quotient(mantissa - 1.0f, mantissa + 1.0f);
  float square = s * s;
  float series = fused(square, fused(square, fused(square, fused(
      square, 1.0f / 9, 1.0f / 7), 1.0f / 5), 1.0f / 3), 1.0f);
  return fused((float)exponent, 0.69314718f, 2.0f * s * series);
}

// e to the x for x in -20..6, which is all that a grey level can tell apart; others count as the nearest bound.
FN float exp_of(float x) {
  x = within(x, -20.0f, 6.0f);
  float whole = floor_of(fused(x, 1.44269504f, 0.5f));
  float rest = fused(-whole, 0.69314718f, x);
  float series = fused(rest, fused(rest, fused(rest, fused(rest, fused(rest, fused(
      rest, 1.0f / 720, 1.0f / 120), 1.0f / 24), 1.0f / 6), 0.5f), 1.0f), 1.0f);
  return series * as_float((u32)((int)whole + 127) << 23);
}

// Two standard normals of the radius in a word's upper half and the angle in its lower: rng.normals.
FN void normals(u32 word, float& first, float& second) {
  float u = ((float)(int)(word >> 16) + 0.5f) * (1.0f / 65536);
  float radius = root_of(-2.0f * log_of(u));
  int low = (int)(word & 0xFFFFu), quadrant = low >> 14;
  float angle = ((float)(low & 0x3FFF) - 8191.5f) * (3.14159265358979f / 32768);
  float square = angle * angle;
  float sine = angle * fused(square, fused(square, fused(square, -1.0f / 5040, 1.0f / 120), -1.0f / 6), 1.0f);
  float cosine = fused(square, fused(square, fused(square, fused(
      square, 1.0f / 40320, -1.0f / 720), 1.0f / 24), -0.5f), 1.0f);
  radius *= 0.70710678f;
  float x = radius * (cosine - sine), y = radius * (cosine + sine);
  first = quadrant & 1 ? -x : x;
  second = quadrant < 2 ? y : -y;
}

// ---------------------------------------------------------------------------------------------------------------------
// warp
// ---------------------------------------------------------------------------------------------------------------------

enum Fill { kConstant = 0, kEdge = 1, kReflect = 2 };

struct Sampling {
  int fill;
  int value;
  int nearest;
};

FN float folded(float x, float size) {
  float around = (x + 0.5f);
  around = fused(-floor_of(quotient(around, 2.0f * size)), 2.0f * size, around);
  float far = around - size;
  return size - (far < 0 ? -far : far) - 0.5f;
}

// Where a pixel comes from: the first of four neighbours, and what part those to its right and below have. In the last
// column and row that part is nothing.
template <int fill, int nearest>
FN void find(int height, int width, float x, float y, int& start, float& right, float& down, int& visible) {
  if (fill == kConstant) {
    visible &= (x >= -0.5f) & (x < (float)width - 0.5f) & (y >= -0.5f) & (y < (float)height - 0.5f);
  } else if (fill == kReflect) {
    x = folded(x, (float)width);
    y = folded(y, (float)height);
  }
  if (nearest) {
    x = floor_of(x + 0.5f);
    y = floor_of(y + 0.5f);
  }
  x = within(x, 0.0f, (float)width - 1.0f);
  y = within(y, 0.0f, (float)height - 1.0f);
  const int x0 = (int)x, y0 = (int)y;
  start = y0 * width + x0;
  right = x - (float)x0;
  down = y - (float)y0;
}

FN int between(u32 a, u32 b, u32 c, u32 d, int number, float right, float down) {
  const float top_left = level(a, number), low_left = level(c, number);
  const float top = fused(level(b, number) - top_left, right, top_left);
  const float low = fused(level(d, number) - low_left, right, low_left);
  return (int)(fused(low - top, down, top) + 0.5f);  // between levels, so there is nothing to clip
}

FN u32 between(u32 a, u32 b, u32 c, u32 d, float right, float down) {
  return join(between(a, b, c, d, 0, right, down), between(a, b, c, d, 1, right, down),
              between(a, b, c, d, 2, right, down));
}

#ifdef __CUDACC__
template <int fill, int nearest>
FN u32 sampled(const u32* from, int height, int width, float x, float y, bool visible, u32 filled) {
  int start, shown = visible;
  float right, down;
  find<fill, nearest>(height, width, x, y, start, right, down, shown);
  const u32* p = from + start;
  const u32 pixel = nearest ? *p : between(p[0], p[1], p[width], p[width + 1], right, down);
  return shown ? pixel : filled;
}
#else
static const int kStrip = 64;  // pixels that are sampled together

// Where they come from first, then their levels: two loops of vectors, each of which fits the registers. `source` sets
// x, y and whether the pixel is seen at all.
template <int fill, int nearest, class Source>
FN void sample_strip(const u32* from, int height, int width, int count, u32 filled, u32* to, Source source) {
  int start[kStrip];
  u32 shown[kStrip];
  float right[kStrip], down[kStrip];
  EACH(i, count) {
    float x, y;
    int visible = 1;
    source(i, x, y, visible);
    find<fill, nearest>(height, width, x, y, start[i], right[i], down[i], visible);
    shown[i] = visible ? ~0u : 0u;
  }
  // Without a condition around them, so that loads and all become one loop of vectors.
  if (nearest) {
    EACH(i, count) to[i] = (from[start[i]] & shown[i]) | (filled & ~shown[i]);
    return;
  }
  const u32* low = from + width;
  EACH(i, count) {
    const int at = start[i];
    const u32 pixel = between(from[at], from[at + 1], low[at], low[at + 1], right[i], down[i]);
    to[i] = (pixel & shown[i]) | (filled & ~shown[i]);
  }
}
#endif

template <int fill, int nearest>
STAGE void warp_as(Canvas& c, const float* m, u32 filled) {
  const int height = c.height, width = c.width;
  // Nothing is fused here: XLA's loops have the products at hand before the sum.
#ifdef __CUDACC__
  const u32* from = c.now;
  u32* to = c.next;
  EACH(place, height * width) {
    const float x = (float)(place % width), y = (float)(place / width);
    const float depth = product(m[6], x) + product(m[7], y) + m[8];
    const float source_x = quotient(product(m[0], x) + product(m[1], y) + m[2], depth);
    const float source_y = quotient(product(m[3], x) + product(m[4], y) + m[5], depth);
    // Behind the camera nothing is seen.
    to[place] = sampled<fill, nearest>(from, height, width, source_x, source_y, depth > 0.0f, filled);
  }
#else
  const bool affine = m[6] == 0.0f && m[7] == 0.0f && m[8] == 1.0f;  // then every depth is 1, and divides nothing
  for (int y = 0; y < height; ++y) {
    const float row_x = product(m[1], (float)y), row_y = product(m[4], (float)y), row_depth = product(m[7], (float)y);
    for (int first = 0; first < width; first += kStrip) {
      const int count = least(kStrip, width - first);
      u32* to = c.next + (i64)y * width + first;
      const auto straight = [&](int i, float& source_x, float& source_y, int&) {
        const float x = (float)(first + i);
        source_x = product(m[0], x) + row_x + m[2];
        source_y = product(m[3], x) + row_y + m[5];
      };
      const auto seen = [&](int i, float& source_x, float& source_y, int& visible) {
        const float x = (float)(first + i);
        const float depth = product(m[6], x) + row_depth + m[8];
        source_x = quotient(product(m[0], x) + row_x + m[2], depth);
        source_y = quotient(product(m[3], x) + row_y + m[5], depth);
        visible = depth > 0.0f;
      };
      if (affine) sample_strip<fill, nearest>(c.now, height, width, count, filled, to, straight);
      else sample_strip<fill, nearest>(c.now, height, width, count, filled, to, seen);
    }
  }
#endif
  SYNC;
  swap(c);
}

// Whether pixels come from whole places: flips, quarter turns, moves by pixels. Neighbours then have no part.
FN bool between_places(const float* m) {
  bool all = m[6] == 0.0f && m[7] == 0.0f && m[8] == 1.0f;
  for (int i = 0; i < 6; ++i) {
    const float most = i % 3 == 2 ? 1048576.0f : 1.0f;  // so that every coordinate is exact
    all = all && m[i] == floor_of(m[i]) && m[i] >= -most && m[i] <= most;
  }
  return all;
}

STAGE void warp(Canvas& c, const float* matrix, Sampling how) {
  const u32 filled = join(how.value, how.value, how.value);
  if (how.nearest || between_places(matrix)) {
    if (how.fill == kConstant) warp_as<kConstant, 1>(c, matrix, filled);
    else if (how.fill == kEdge) warp_as<kEdge, 1>(c, matrix, filled);
    else warp_as<kReflect, 1>(c, matrix, filled);
  } else if (how.fill == kConstant) warp_as<kConstant, 0>(c, matrix, filled);
  else if (how.fill == kEdge) warp_as<kEdge, 0>(c, matrix, filled);
  else warp_as<kReflect, 0>(c, matrix, filled);
}

// ---------------------------------------------------------------------------------------------------------------------
// tone: a curve as given, or one made of the image's statistics
// ---------------------------------------------------------------------------------------------------------------------

enum Curve { kGiven = 0, kContrast = 1, kAutocontrast = 2, kEqualize = 3 };

FN int luma(u32 pixel) {
  return (19595 * channel(pixel, 0) + 38470 * channel(pixel, 1) + 7471 * channel(pixel, 2) + 0x8000) >> 16;
}

FN void count_pixel(u32 (*histogram)[256], u32 pixel) {
  COUNT(histogram[0][pixel & 255u]);
  COUNT(histogram[1][pixel >> 8 & 255u]);
  COUNT(histogram[2][pixel >> 16 & 255u]);
}

STAGE void count_levels(Canvas& c) {
  Shared& s = *c.shared;
  EACH(bin, 256) s.histogram[0][bin] = s.histogram[1][bin] = s.histogram[2][bin] = 0;
  SYNC;
  const int area = pixel_count(c);
#ifdef __CUDACC__
  EACH(place, area) count_pixel(s.histogram, c.now[place]);
#else
  // No EACH: bins are shared. Neighbours are often alike, and a bin waits for what was just written to it, so that every
  // other pixel counts in bins of its own.
  u32 other[3][256] = {};
  for (int place = 0; place + 1 < area; place += 2) {
    count_pixel(s.histogram, c.now[place]);
    count_pixel(other, c.now[place + 1]);
  }
  if (area % 2) count_pixel(s.histogram, c.now[area - 1]);
  for (int number = 0; number < 3; ++number) {
    EACH(bin, 256) s.histogram[number][bin] += other[number][bin];
  }
#endif
  SYNC;
}

// Pillow's `ImageEnhance.Contrast`: from the mean luma through each level.
STAGE void contrast_curve(Canvas& c, float factor) {
  Shared& s = *c.shared;
  EACH(only, 1) s.luma = 0;
  SYNC;
#ifdef __CUDACC__
  EACH(place, pixel_count(c)) TOTAL(s.luma, luma(c.now[place]));
#else
  for (int y = 0; y < c.height; ++y) {
    u32 total = 0;  // a row's: below 2**32 for any row that fits an int
    for (int x = 0; x < c.width; ++x) total += (u32)luma(c.now[(i64)y * c.width + x]);
    s.luma += total;
  }
#endif
  SYNC;
  float pivot = (float)(int)((double)s.luma / (double)pixel_count(c) + 0.5);
  EACH(bin, 256) {
    u8 value = (u8)to_level(pivot + product(factor, (float)bin - pivot));
    s.curve[0][bin] = s.curve[1][bin] = s.curve[2][bin] = value;
  }
}

// Pillow's `ImageOps.autocontrast`, in float64 as there: the least level goes to 0, the greatest to 255.
STAGE void autocontrast_curve(Canvas& c) {
  Shared& s = *c.shared;
  count_levels(c);
  for (int number = 0; number < 3; ++number) {
    int low = 0, high = 255;
    while (low < 255 && !s.histogram[number][low]) ++low;
    while (high > low && !s.histogram[number][high]) --high;
    double scale = 255.0 / (double)greatest(high - low, 1), offset = -(double)low * scale;
    EACH(bin, 256) {
      // Not fused, as in Pillow's Python: a level that lands on a whole number must land on the same side of it.
      double x = product((double)bin, scale) + offset;
      x = x > 0.0 ? x : 0.0;
      x = x < 255.0 ? x : 255.0;
      s.curve[number][bin] = (u8)(high > low ? (int)x : bin);
    }
  }
}

// Pillow's `ImageOps.equalize`.
STAGE void equalize_curve(Canvas& c) {
  Shared& s = *c.shared;
  count_levels(c);
#ifdef __CUDACC__
  EACH(number, 3) {
#else
  for (int number = 0; number < 3; ++number) {
#endif
    const u32* histogram = s.histogram[number];
    int last = 255;
    while (last > 0 && !histogram[last]) --last;
    u32 step = ((u32)pixel_count(c) - histogram[last]) / 255u;  // those of the brightest level do not count
    u32 below = 0;
    for (int bin = 0; bin < 256; ++bin) {
      u32 value = step ? (below + step / 2) / step : (u32)bin;
      s.curve[number][bin] = (u8)(value < 255u ? value : 255u);
      below += histogram[bin];
    }
  }
}

// given: three curves, or one for all channels (stride 0).
STAGE void tone(Canvas& c, int kind, float factor, const u8* given, int stride) {
  Shared& s = *c.shared;
  if (kind == kContrast) contrast_curve(c, factor);
  else if (kind == kAutocontrast) autocontrast_curve(c);
  else if (kind == kEqualize) equalize_curve(c);
  else {
    for (int number = 0; number < 3; ++number) {
      EACH(bin, 256) s.curve[number][bin] = given[number * stride + bin];
    }
  }
  SYNC;
  u32* pixels = c.now;
#ifdef __CUDACC__
  EACH(place, pixel_count(c)) {
    u32 pixel = pixels[place];
    pixels[place] = join(s.curve[0][pixel & 255u], s.curve[1][pixel >> 8 & 255u], s.curve[2][pixel >> 16 & 255u]);
  }
#else
  int first = 0;
#ifdef __AVX512VBMI__
  first = look_up_bytes(pixels, s.curve, kind == kContrast || (kind == kGiven && stride == 0), pixel_count(c));
#endif
  // Channels in their place already, so that a pixel is three loads and two ors.
  u32 red[256], green[256], blue[256];
  for (int bin = 0; bin < 256; ++bin) {
    red[bin] = s.curve[0][bin];
    green[bin] = (u32)s.curve[1][bin] << 8;
    blue[bin] = (u32)s.curve[2][bin] << 16;
  }
  pixels += first;
  EACH(place, pixel_count(c) - first) {
    u32 pixel = pixels[place];
    pixels[place] = red[pixel & 255u] | green[pixel >> 8 & 255u] | blue[pixel >> 16 & 255u];
  }
#endif
  SYNC;
}

// ---------------------------------------------------------------------------------------------------------------------
// mix, stain, mask, noise: each pixel from itself
// ---------------------------------------------------------------------------------------------------------------------

FN float row_of(const float* weight, float red, float green, float blue) {
  return fused(weight[2], blue, fused(weight[0], red, product(weight[1], green))) + weight[3];
}

WIDE STAGE void mix(Canvas& c, const float* m) {
  u32* pixels = c.now;
  EACH(place, pixel_count(c)) {
    u32 pixel = pixels[place];
    float red = level(pixel, 0), green = level(pixel, 1), blue = level(pixel, 2);
    pixels[place] = join(to_level(row_of(m, red, green, blue)), to_level(row_of(m + 4, red, green, blue)),
                         to_level(row_of(m + 8, red, green, blue)));
  }
  SYNC;
}

// logs: float [256], of the levels.
WIDE STAGE void stain(Canvas& c, const float* m, const float* logs) {
  u32* pixels = c.now;
  EACH(place, pixel_count(c)) {
    u32 pixel = pixels[place];
    float red = logs[pixel & 255u], green = logs[pixel >> 8 & 255u], blue = logs[pixel >> 16 & 255u];
    pixels[place] = join(to_level(exp_of(row_of(m, red, green, blue)) + 0.5f),
                         to_level(exp_of(row_of(m + 4, red, green, blue)) + 0.5f),
                         to_level(exp_of(row_of(m + 8, red, green, blue)) + 0.5f));
  }
  SYNC;
}

struct Lattice {
  float cosine, sine, u0, v0, period, extent_u, extent_v, value;
};

FN u32 masked(u32 pixel, const Lattice& l, float x, float y, u32 filled) {
  float u = fused(l.cosine, x, product(l.sine, y)) + l.u0;
  float v = fused(l.cosine, y, -product(l.sine, x)) + l.v0;
  bool inside = (fused(-floor_of(quotient(u, l.period)), l.period, u) < l.extent_u)
      & (fused(-floor_of(quotient(v, l.period)), l.period, v) < l.extent_v);
  return inside ? filled : pixel;
}

STAGE void mask(Canvas& c, const Lattice& l) {
  u32* pixels = c.now;
  const int value = to_level(l.value + 0.5f);
  const u32 filled = join(value, value, value);
#ifdef __CUDACC__
  EACH(place, pixel_count(c)) {
    pixels[place] = masked(pixels[place], l, (float)(place % c.width), (float)(place / c.width), filled);
  }
#else
  for (int y = 0; y < c.height; ++y) {
    u32* row = pixels + (i64)y * c.width;
    EACH(x, c.width) row[x] = masked(row[x], l, (float)x, (float)y, filled);
  }
#endif
  SYNC;
}

WIDE STAGE void noise(Canvas& c, u32 key0, u32 key1, float std) {
  u32* pixels = c.now;
  EACH(place, pixel_count(c)) {
    u32 first, second;
    threefry(key0, key1, (u32)place, first, second);
    float red, green, blue, unused;
    normals(first, red, green);
    normals(second, blue, unused);
    u32 pixel = pixels[place];
    pixels[place] = join(to_level(fused(std, red, level(pixel, 0)) + 0.5f),
                         to_level(fused(std, green, level(pixel, 1)) + 0.5f),
                         to_level(fused(std, blue, level(pixel, 2)) + 0.5f));
  }
  SYNC;
}

// ---------------------------------------------------------------------------------------------------------------------
// filter: Pillow's 3x3 smoothing, blended
// ---------------------------------------------------------------------------------------------------------------------

FN u32 smoothed(const u32* from, int width, int place, float factor) {
  u32 red_blue = 0, green = 0;  // sums of 13 levels take 12 bits, so two channels fit a word
  for (int row = -1; row <= 1; ++row) {
    for (int column = -1; column <= 1; ++column) {
      u32 pixel = from[place + row * width + column];
      red_blue += pixel & 0xFF00FFu;
      green += pixel >> 8 & 0xFFu;
    }
  }
  u32 centre = from[place];
  red_blue += 4u * (centre & 0xFF00FFu);
  green += 4u * (centre >> 8 & 0xFFu);
  const u32 sums[3] = {red_blue & 0xFFFFu, green, red_blue >> 16};
  u32 pixel = 0;
  for (int number = 0; number < 3; ++number) {
    // (2 sum + 13) / 26 of a sum below 2**12, as a product.
    float smooth = (float)(int)((2u * sums[number] + 13u) * 40330u >> 20);
    pixel |= (u32)to_level(smooth + product(factor, level(centre, number) - smooth)) << (8 * number);
  }
  return pixel;
}

WIDE STAGE void filter(Canvas& c, float factor) {
  const int height = c.height, width = c.width;
  if (height < 3 || width < 3) return;
  const u32* from = c.now;
  u32* to = c.next;
#ifdef __CUDACC__
  EACH(place, pixel_count(c)) {
    int y = place / width, x = place % width;
    bool inner = y > 0 && y < height - 1 && x > 0 && x < width - 1;
    to[place] = inner ? smoothed(from, width, place, factor) : from[place];
  }
#else
  EACH(x, width) {
    to[x] = from[x];
    to[(height - 1) * width + x] = from[(height - 1) * width + x];
  }
  for (int y = 1; y < height - 1; ++y) {
    const int start = y * width;
    to[start] = from[start];
    to[start + width - 1] = from[start + width - 1];
    EACH(x, width - 2) to[start + 1 + x] = smoothed(from, width, start + 1 + x, factor);
  }
#endif
  SYNC;
  swap(c);
}

// ---------------------------------------------------------------------------------------------------------------------
// blur and streak: a kernel over the image and its mirror images beyond the border
// ---------------------------------------------------------------------------------------------------------------------

FN int mirrored(int place, int side) {
  int around = place % (2 * side);
  around += around < 0 ? 2 * side : 0;
  return least(around, 2 * side - 1 - around);
}

#ifndef __CUDACC__
// The weighted sum of `count` rows, in their order: row(number) tells where each lies. Four at a time, so that the sum
// is read and written once for the four.
template <class Row>
FN void weigh(float* to, int width, int count, const float* weight, Row row) {
  EACH(x, width) to[x] = 0.0f;
  int number = 0;
  for (; number + 4 <= count; number += 4) {
    const float *a = row(number), *b = row(number + 1), *c = row(number + 2), *d = row(number + 3);
    const float of_a = weight[number], of_b = weight[number + 1], of_c = weight[number + 2], of_d = weight[number + 3];
    EACH(x, width) to[x] = fused(of_d, d[x], fused(of_c, c[x], fused(of_b, b[x], fused(of_a, a[x], to[x]))));
  }
  for (; number < count; ++number) {
    const float* last = row(number);
    const float of_last = weight[number];
    EACH(x, width) to[x] = fused(of_last, last[x], to[x]);
  }
}
#endif

// Writes three float planes with `border` mirrored pixels on every side.
STAGE void spread(Canvas& c, int border) {
  const int wide = c.width + 2 * border, tall = c.height + 2 * border;
  float* planes = c.planes;
#ifdef __CUDACC__
  EACH(place, wide * tall) {
    u32 pixel = c.now[mirrored(place / wide - border, c.height) * c.width + mirrored(place % wide - border, c.width)];
    for (int number = 0; number < 3; ++number) planes[(i64)number * wide * tall + place] = level(pixel, number);
  }
#else
  for (int y = 0; y < tall; ++y) {
    const u32* from = c.now + (i64)mirrored(y - border, c.height) * c.width;
    for (int number = 0; number < 3; ++number) {
      float* to = planes + ((i64)number * tall + y) * wide;
      for (int x = 0; x < border; ++x) {
        to[x] = level(from[mirrored(x - border, c.width)], number);
        to[border + c.width + x] = level(from[mirrored(c.width + x, c.width)], number);
      }
      to += border;
      EACH(x, c.width) to[x] = level(from[x], number);
    }
  }
#endif
  SYNC;
}

// Lists the taps of a kernel in quadrants (see primitives/streak.py; odd is null for a blur) that are not zero.
STAGE void prepare(Shared& s, const float* even, const float* odd) {
#ifdef __CUDACC__
  if (threadIdx.x) return;
#endif
  const int side = kRadius + 1;
  int radius = 0;
  bool finite = true;
  float sums[kRadius + 1];
  for (int down = 0; down < side; ++down) {
    sums[down] = 0.0f;
    for (int across = 0; across < side; ++across) {
      float weight = even[down * side + across];
      const bool used = weight != 0.0f || (odd && odd[down * side + across] != 0.0f);
      if (used) radius = greatest(radius, greatest(down, across));
      finite = finite && weight - weight == 0.0f;
      sums[down] += across ? 2.0f * weight : weight;
    }
  }
  bool separable = odd == nullptr && finite && radius > 1;
  for (int down = 0; separable && down < side; ++down) {
    for (int across = 0; across < side; ++across) {
      float apart = even[down * side + across] - sums[down] * sums[across];
      separable = separable && apart < 1e-7f && apart > -1e-7f;
    }
  }
  int taps = 0;
  for (int y = separable ? 0 : -radius; y <= (separable ? 0 : radius); ++y) {
    for (int x = -radius; x <= radius; ++x) {
      int down = y < 0 ? -y : y, across = x < 0 ? -x : x;
      float weight = even[down * side + across];
      if (odd && x && y) weight += ((x < 0) == (y < 0) ? 1.0f : -1.0f) * odd[down * side + across];
      if (separable) weight = sums[across];
      if (weight == 0.0f) continue;
      s.weight[taps] = weight;
      s.tap_y[taps] = (signed char)y;
      s.tap_x[taps++] = (signed char)x;
    }
  }
  s.taps = taps;
  s.radius = radius;
  s.separable = separable;
}

STAGE void convolve(Canvas& c, const float* even, const float* odd) {
  Shared& s = *c.shared;
  prepare(s, even, odd);
  SYNC;
  const int radius = s.radius, height = c.height, width = c.width;
  const int wide = width + 2 * radius, tall = height + 2 * radius;
  spread(c, radius);
  float* results = c.planes + (i64)3 * wide * tall;
#ifdef __CUDACC__
  if (s.separable) {  // down into the columns' own place is not safe between threads, so across goes to the results
    for (int number = 0; number < 3; ++number) {
      const float* from = c.planes + (i64)number * wide * tall;
      float* to = results + (i64)number * height * width;
      EACH(place, height * width) {
        const float* row = from + (place / width + radius) * wide + place % width + radius;
        float sum = 0.0f;
        for (int tap = 0; tap < s.taps; ++tap) sum = fused(s.weight[tap], row[s.tap_x[tap]], sum);
        to[place] = sum;
      }
    }
    SYNC;
    EACH(place, height * width) {
      u32 pixel = 0;
      for (int number = 0; number < 3; ++number) {
        const float* from = results + (i64)number * height * width + place % width;
        float sum = 0.0f;
        for (int tap = 0; tap < s.taps; ++tap) {
          sum = fused(s.weight[tap], from[mirrored(place / width + s.tap_x[tap], height) * width], sum);
        }
        pixel |= (u32)to_level(sum + 0.5f) << (8 * number);
      }
      c.next[place] = pixel;
    }
  } else {
    EACH(place, height * width) {
      u32 pixel = 0;
      for (int number = 0; number < 3; ++number) {
        const int start = (place / width + radius) * wide + place % width + radius;
        const float* from = c.planes + (i64)number * wide * tall + start;
        float sum = 0.0f;
        for (int tap = 0; tap < s.taps; ++tap) {
          sum = fused(s.weight[tap], from[s.tap_y[tap] * wide + s.tap_x[tap]], sum);
        }
        pixel |= (u32)to_level(sum + 0.5f) << (8 * number);
      }
      c.next[place] = pixel;
    }
  }
#else
  for (int number = 0; number < 3; ++number) {
    const float* from = c.planes + (i64)number * wide * tall;
    float* to = results + (i64)number * height * width;
    for (int y = 0; y < height; ++y) {
      weigh(to + (i64)y * width, width, s.taps, s.weight, [&](int tap) {
        return from + (i64)(y + radius + s.tap_y[tap]) * wide + radius + s.tap_x[tap];
      });
    }
    if (!s.separable) continue;
    float* sums = c.planes + (i64)number * wide * tall;  // the channel's own bordered plane is not needed any more
    for (int y = 0; y < height; ++y) {
      weigh(sums + (i64)y * width, width, s.taps, s.weight, [&](int tap) {
        return to + (i64)mirrored(y + s.tap_x[tap], height) * width;
      });
    }
  }
  const float* parts[3];
  for (int number = 0; number < 3; ++number) {
    parts[number] = s.separable ? c.planes + (i64)number * wide * tall : results + (i64)number * height * width;
  }
  u32* next = c.next;
  const float *red = parts[0], *green = parts[1], *blue = parts[2];
  EACH(place, height * width) {
    next[place] = join(to_level(red[place] + 0.5f), to_level(green[place] + 0.5f), to_level(blue[place] + 0.5f));
  }
#endif
  SYNC;
  swap(c);
}

// ---------------------------------------------------------------------------------------------------------------------
// mosaic
// ---------------------------------------------------------------------------------------------------------------------

static const int kMosaicBits = 22;

// Cells across or down: a pixel shows the cell place / (2 side), and counts towards (place - 1) / (2 side).
FN int shown(int pixel, int cells, int side) { return (int)((i64)(2 * pixel + 1) * cells / (2 * side)); }
FN int counted(int pixel, int cells, int side) { return (int)(((i64)(2 * pixel + 1) * cells - 1) / (2 * side)); }
// The first pixel that counts towards a cell, or towards a later one.
FN int first_of(int cell, int cells, int side) {
  int first = (int)(((i64)cell * 2 * side + cells) / (2 * (i64)cells));
  while (first > 0 && counted(first - 1, cells, side) >= cell) --first;
  while (first < side && counted(first, cells, side) < cell) ++first;
  return first;
}

FN u32 share_of(int number) {  // one over the number of pixels, in fixed point
  const u32 pixels = (u32)greatest(number, 1);
  return ((2u << kMosaicBits) + pixels) / (2u * pixels);
}
FN int mean_of(u32 total, u32 share) { return (int)((total * share + (1u << (kMosaicBits - 1))) >> kMosaicBits); }

#ifdef __CUDACC__
// The mean, rounded, of a cell of pixels `stride` apart, of which the first side's worth lies at `from`.
FN u32 cell_mean(const u32* from, int stride, int pixel, int cells, int side) {
  const int cell = shown(pixel, cells, side);
  const int first = first_of(cell, cells, side), end = first_of(cell + 1, cells, side);
  const u32 share = share_of(end - first);
  u32 red = 0, green = 0, blue = 0;
  for (int each = first; each < end; ++each) {
    u32 value = from[(i64)each * stride];
    red += value & 255u;
    green += value >> 8 & 255u;
    blue += value >> 16 & 255u;
  }
  return join(mean_of(red, share), mean_of(green, share), mean_of(blue, share));
}
#else
static const int kCells = 256;  // of a line, whose ends are kept at a time
static const int kBand = 8192;  // pixels of the lines that a cell is worked on in before the next one: they stay in cache
#endif

STAGE void mosaic(Canvas& c, int rows, int columns) {
  const int height = c.height, width = c.width;
  rows = within(rows, 1, height);
  columns = within(columns, 1, width);
#ifdef __CUDACC__
  EACH(place, height * width) {
    c.next[place] = cell_mean(c.now + (i64)(place / width) * width, 1, place % width, columns, width);
  }
  SYNC;
  swap(c);
  EACH(place, height * width) {
    c.next[place] = cell_mean(c.now + place % width, width, place / width, rows, height);
  }
#else
  // The ends of many cells first, once for all lines.
  const int lines = greatest(8, kBand / width);
  for (int cell = 0, x = 0; cell < columns; cell += kCells) {
    const int count = least(kCells, columns - cell);
    int first[kCells + 1], begin[kCells + 1];
    u32 share[kCells];
    first[0] = first_of(cell, columns, width), begin[0] = x;
    for (int n = 0; n < count; ++n) {
      while (x < width && shown(x, columns, width) == cell + n) ++x;
      first[n + 1] = first_of(cell + n + 1, columns, width), begin[n + 1] = x;
      share[n] = share_of(first[n + 1] - first[n]);
    }
    for (int top = 0; top < height; top += lines) {
      for (int n = 0; n < count; ++n) {
        for (int y = top; y < least(top + lines, height); ++y) {
          const u32* from = c.now + (i64)y * width;
          u32* to = c.next + (i64)y * width;
          u32 red = 0, green = 0, blue = 0;
          for (int each = first[n]; each < first[n + 1]; ++each) {
            red += from[each] & 255u;
            green += from[each] >> 8 & 255u;
            blue += from[each] >> 16 & 255u;
          }
          const u32 mean = join(mean_of(red, share[n]), mean_of(green, share[n]), mean_of(blue, share[n]));
          for (int each = begin[n]; each < begin[n + 1]; ++each) to[each] = mean;
        }
      }
    }
  }
  swap(c);
  for (int cell = 0, y = 0; cell < rows; ++cell) {
    const int first = first_of(cell, rows, height), end = first_of(cell + 1, rows, height), begin = y;
    while (y < height && shown(y, rows, height) == cell) ++y;
    const u32 share = share_of(end - first);
    for (int start = 0; start < width; start += kStrip) {
      const int count = least(kStrip, width - start);
      u32 red[kStrip] = {0}, green[kStrip] = {0}, blue[kStrip] = {0};
      for (int each = first; each < end; ++each) {
        const u32* from = c.now + (i64)each * width + start;
        EACH(x, count) {
          red[x] += from[x] & 255u;
          green[x] += from[x] >> 8 & 255u;
          blue[x] += from[x] >> 16 & 255u;
        }
      }
      EACH(x, count) red[x] = join(mean_of(red[x], share), mean_of(green[x], share), mean_of(blue[x], share));
      for (int each = begin; each < y; ++each) {
        u32* to = c.next + (i64)each * width + start;
        EACH(x, count) to[x] = red[x];
      }
    }
  }
#endif
  SYNC;
  swap(c);
}

// ---------------------------------------------------------------------------------------------------------------------
// elastic
// ---------------------------------------------------------------------------------------------------------------------

// The Gaussian filter of one axis at the image's sides, and how far it reaches; a displacement is multiplied by scale.
struct Smoothing {
  const float* weight;  // 2 reach + 1
  int reach;
  float scale;
};

FN float uniform_of(u32 bits) { return (float)(int)(bits >> 8) * (1.0f / 8388608) - 1.0f; }

template <int fill>
STAGE void displaced(Canvas& c, const float* dx, const float* dy, u32 filled) {
  const int height = c.height, width = c.width;
#ifdef __CUDACC__
  const u32* from = c.now;
  u32* to = c.next;
  EACH(place, height * width) {
    to[place] = sampled<fill, 0>(from, height, width, (float)(place % width) + dx[place],
                                 (float)(place / width) + dy[place], true, filled);
  }
#else
  for (int y = 0; y < height; ++y) {
    for (int first = 0; first < width; first += kStrip) {
      const i64 start = (i64)y * width + first;
      const auto source = [&](int i, float& source_x, float& source_y, int&) {
        source_x = (float)(first + i) + dx[start + i];
        source_y = (float)y + dy[start + i];
      };
      sample_strip<fill, 0>(c.now, height, width, least(kStrip, width - first), filled, c.next + start, source);
    }
  }
#endif
  SYNC;
  swap(c);
}

// Filters `from` along one axis into `to`. On the host a row is done as a whole, so that it vectorises.
STAGE void smooth_down(const Canvas& c, const float* from, float* to, const Smoothing& how, float scale) {
  const int height = c.height, width = c.width;
#ifdef __CUDACC__
  EACH(place, height * width) {
    float sum = 0.0f;
    for (int tap = -how.reach; tap <= how.reach; ++tap) {
      const int row = mirrored(place / width + tap, height);
      sum = fused(how.weight[tap + how.reach], from[row * width + place % width], sum);
    }
    to[place] = sum * scale;
  }
#else
  for (int y = 0; y < height; ++y) {
    float* row = to + (i64)y * width;
    weigh(row, width, 2 * how.reach + 1, how.weight, [&](int tap) {
      return from + (i64)mirrored(y + tap - how.reach, height) * width;
    });
    EACH(x, width) row[x] *= scale;
  }
#endif
  SYNC;
}

STAGE void smooth_across(const Canvas& c, const float* from, float* to, const Smoothing& how) {
  const int height = c.height, width = c.width, reach = how.reach;
#ifdef __CUDACC__
  EACH(place, height * width) {
    float sum = 0.0f;
    for (int tap = -reach; tap <= reach; ++tap) {
      sum = fused(how.weight[tap + reach], from[place / width * width + mirrored(place % width + tap, width)], sum);
    }
    to[place] = sum;
  }
#else
  float* line = c.planes + (i64)3 * height * width;  // a row between its mirror images
  for (int y = 0; y < height; ++y) {
    const float* in = from + (i64)y * width;
    for (int x = 0; x < reach; ++x) {
      line[x] = in[mirrored(x - reach, width)];
      line[reach + width + x] = in[mirrored(width + x, width)];
    }
    float* inner = line + reach;
    EACH(x, width) inner[x] = in[x];
    weigh(to + (i64)y * width, width, 2 * reach + 1, how.weight, [&](int tap) { return line + tap; });
  }
#endif
  SYNC;
}

STAGE void elastic(Canvas& c, u32 key0, u32 key1, float alpha, const Smoothing& smoothing, Sampling how) {
  const i64 area = pixel_count(c);
  float *dx = c.planes, *dy = dx + area, *other = dy + area;
  EACH(place, pixel_count(c)) {
    u32 first, second;
    threefry(key0, key1, (u32)place, first, second);
    dx[place] = uniform_of(first);
    dy[place] = uniform_of(second);
  }
  SYNC;
  for (int axis = 0; axis < 2; ++axis) {
    float* field = axis ? dy : dx;
    smooth_across(c, field, other, smoothing);
    smooth_down(c, other, field, smoothing, smoothing.scale * alpha);
  }
  const u32 filled = join(how.value, how.value, how.value);
  if (how.fill == kConstant) displaced<kConstant>(c, dx, dy, filled);
  else if (how.fill == kEdge) displaced<kEdge>(c, dx, dy, filled);
  else displaced<kReflect>(c, dx, dy, filled);
}

// ---------------------------------------------------------------------------------------------------------------------
// jpeg: libjpeg's integers, see primitives/jpeg.py
// ---------------------------------------------------------------------------------------------------------------------

struct JpegTables {
  const int* matrix;       // [8, 8]
  const int* luminance;    // [8, 8]
  const int* chrominance;  // [8, 8]
};

FN int fixed(double x) { return (int)(x * 65536 + (x < 0 ? -0.5 : 0.5)); }

// Forward transform, quantisation and back of the 8x8 block whose first number lies at `block`, in a plane `wide` wide.
// Sums are of unsigned words, which may wrap around where tables are no tables; none of the standard's does.
// forward: the matrix's columns as rows, so that each sum runs over eight numbers that lie side by side.
STAGE void round_trip(int* block, int wide, const int* matrix, const int* forward, const float* steps) {
  int a[64], b[64];
  ROLLED for (int row = 0; row < 8; ++row) {
    u32 sum[8] = {0};
    for (int k = 0; k < 8; ++k) {
      const u32 each = (u32)block[row * wide + k];
      for (int across = 0; across < 8; ++across) sum[across] += (u32)forward[k * 8 + across] * each;
    }
    for (int across = 0; across < 8; ++across) a[row * 8 + across] = (int)(sum[across] + (1u << 10)) >> 11;
  }
  ROLLED for (int down = 0; down < 8; ++down) {
    u32 sum[8] = {0};
    for (int k = 0; k < 8; ++k) {
      for (int across = 0; across < 8; ++across) sum[across] += (u32)matrix[down * 8 + k] * (u32)a[k * 8 + across];
    }
    for (int across = 0; across < 8; ++across) b[down * 8 + across] = (int)(sum[across] + (1u << 14)) >> 15;
  }
  ROLLED for (int place = 0; place < 64; ++place) {
    // Half a unit keeps the quotient off the whole numbers, so that its rounding is harmless: see primitives/jpeg.py.
    const float step = steps[place];
    const int size = b[place] < 0 ? -b[place] : b[place];
    const int whole = (int)(quotient((float)size + product(4.0f, step) + 0.5f, 8.0f * step)) * (int)step;
    b[place] = b[place] < 0 ? -whole : whole;
  }
  ROLLED for (int row = 0; row < 8; ++row) {
    u32 sum[8] = {0};
    for (int k = 0; k < 8; ++k) {
      for (int across = 0; across < 8; ++across) sum[across] += (u32)forward[row * 8 + k] * (u32)b[k * 8 + across];
    }
    for (int across = 0; across < 8; ++across) a[row * 8 + across] = (int)(sum[across] + (1u << 10)) >> 11;
  }
  ROLLED for (int row = 0; row < 8; ++row) {
    u32 sum[8] = {0};
    for (int k = 0; k < 8; ++k) {
      for (int column = 0; column < 8; ++column) sum[column] += (u32)matrix[k * 8 + column] * (u32)a[row * 8 + k];
    }
    for (int column = 0; column < 8; ++column) {
      block[row * wide + column] = within((int)(sum[column] + (1u << 17)) >> 18, -128, 127);
    }
  }
}

FN int luminance(u32 pixel) {  // less 128, as the transform takes it
  return (fixed(0.299) * channel(pixel, 0) + fixed(0.587) * channel(pixel, 1) + fixed(0.114) * channel(pixel, 2) + 32768
          - (128 << 16)) >> 16;
}
FN int blueness(u32 pixel) {
  return (fixed(-0.168735892) * channel(pixel, 0) + fixed(-0.331264108) * channel(pixel, 1)
          + fixed(0.5) * channel(pixel, 2) + 32767) >> 16;
}
FN int redness(u32 pixel) {
  return (fixed(0.5) * channel(pixel, 0) + fixed(-0.418687589) * channel(pixel, 1)
          + fixed(-0.081312411) * channel(pixel, 2) + 32767) >> 16;
}
FN u32 to_rgb(int luma, int blue, int red) {
  const int base = luma + 128;
  return join(within(base + ((fixed(1.402) * red + 32768) >> 16), 0, 255),
              within(base + ((fixed(-0.34414) * blue + fixed(-0.71414) * red + 32768) >> 16), 0, 255),
              within(base + ((fixed(1.772) * blue + 32768) >> 16), 0, 255));
}

// A picture's planes, whole blocks of each: luminance at full size, two of chroma at half.
struct Parts {
  int height, width, half_height, half_width;  // of what counts
  int tall, wide, small_tall, small_wide;      // with what fills the blocks
  int *luma, *blue, *red;
};

// The mean of two by two pixels, at the column of a plane of chroma.
FN void halve(const Parts& p, const u32* upper, const u32* lower, int left, int right, int place, int column) {
  const u32 a = upper[left], b = upper[right], c = lower[left], d = lower[right];
  p.blue[place] = (blueness(a) + blueness(b) + blueness(c) + blueness(d) + 1 + column % 2) >> 2;
  p.red[place] = (redness(a) + redness(b) + redness(c) + redness(d) + 1 + column % 2) >> 2;
}

// Beyond the image its last row and column repeat; below it the last averages do.
STAGE void split(const Parts& p, const u32* pixels) {
#ifdef __CUDACC__
  EACH(place, p.tall * p.wide) {
    p.luma[place] = luminance(
        pixels[(i64)least(place / p.wide, p.height - 1) * p.width + least(place % p.wide, p.width - 1)]);
  }
  EACH(place, p.small_tall * p.small_wide) {
    const int row = least(place / p.small_wide, p.half_height - 1), column = place % p.small_wide;
    halve(p, pixels + (i64)2 * row * p.width, pixels + (i64)least(2 * row + 1, p.height - 1) * p.width,
          least(2 * column, p.width - 1), least(2 * column + 1, p.width - 1), place, column);
  }
#else
  for (int y = 0; y < p.tall; ++y) {
    const u32* from = pixels + (i64)least(y, p.height - 1) * p.width;
    int* to = p.luma + (i64)y * p.wide;
    EACH(x, p.width) to[x] = luminance(from[x]);
    for (int x = p.width; x < p.wide; ++x) to[x] = to[p.width - 1];
  }
  for (int y = 0; y < p.small_tall; ++y) {
    const int row = least(y, p.half_height - 1), start = y * p.small_wide;
    const u32* upper = pixels + (i64)2 * row * p.width;
    const u32* lower = pixels + (i64)least(2 * row + 1, p.height - 1) * p.width;
    EACH(column, p.width / 2) halve(p, upper, lower, 2 * column, 2 * column + 1, start + column, column);
    for (int column = p.width / 2; column < p.small_wide; ++column) {
      halve(p, upper, lower, least(2 * column, p.width - 1), p.width - 1, start + column, column);
    }
  }
#endif
}

// Chroma at twice the size, by libjpeg's triangle filter.
FN int doubled(const Parts& p, const int* plane, int y, int x) {
  const int row = y / 2, column = x / 2;
  if (p.half_width <= 2) return plane[row * p.small_wide + column];  // the library repeats what is as narrow as this
  const int beside = within(row + (y % 2 ? 1 : -1), 0, p.half_height - 1);
  const int next = within(column + (x % 2 ? 1 : -1), 0, p.half_width - 1);
  const int here = 3 * plane[row * p.small_wide + column] + plane[beside * p.small_wide + column];
  const int there = 3 * plane[row * p.small_wide + next] + plane[beside * p.small_wide + next];
  return (3 * here + there + (x % 2 ? 7 : 8)) >> 4;
}

FN u32 whole(const Parts& p, int y, int x) {
  return to_rgb(p.luma[y * p.wide + x], doubled(p, p.blue, y, x), doubled(p, p.red, y, x));
}

#ifndef __CUDACC__
// A row of chroma from the two rows nearest to it, with room for a column on either side.
FN void between_rows(const Parts& p, const int* plane, int y, int* to) {
  const int* near = plane + (i64)(y / 2) * p.small_wide;
  const int* far = plane + (i64)within(y / 2 + (y % 2 ? 1 : -1), 0, p.half_height - 1) * p.small_wide;
  EACH(x, p.half_width) to[1 + x] = 3 * near[x] + far[x];
  to[0] = to[1];
  to[p.half_width + 1] = to[p.half_width];
}
#endif

STAGE void merge(const Parts& p, u32* pixels) {
#ifdef __CUDACC__
  EACH(place, p.height * p.width) pixels[place] = whole(p, place / p.width, place % p.width);
#else
  int* blue = p.red + (i64)p.small_tall * p.small_wide;  // a row of each, as `between_rows` makes it
  int* red = blue + p.half_width + 2;
  for (int y = 0; y < p.height; ++y) {
    u32* to = pixels + (i64)y * p.width;
    if (p.half_width <= 2) {
      for (int x = 0; x < p.width; ++x) to[x] = whole(p, y, x);
      continue;
    }
    between_rows(p, p.blue, y, blue);
    between_rows(p, p.red, y, red);
    const int* luma = p.luma + (i64)y * p.wide;
    EACH(x, p.width / 2) {
      to[2 * x] = to_rgb(luma[2 * x], (3 * blue[x + 1] + blue[x] + 8) >> 4, (3 * red[x + 1] + red[x] + 8) >> 4);
      to[2 * x + 1] = to_rgb(luma[2 * x + 1], (3 * blue[x + 1] + blue[x + 2] + 7) >> 4,
                             (3 * red[x + 1] + red[x + 2] + 7) >> 4);
    }
    if (p.width % 2) to[p.width - 1] = whole(p, y, p.width - 1);
  }
#endif
}

STAGE void jpeg(Canvas& c, int quality, const JpegTables& tables) {
  if (quality >= 100) return;
  quality = within(quality, 1, 100);
  const int scale = quality < 50 ? 5000 / quality : 200 - 2 * quality;
  Parts p;
  p.height = c.height, p.width = c.width;
  p.half_height = (c.height + 1) / 2, p.half_width = (c.width + 1) / 2;
  p.tall = (c.height + 7) / 8 * 8, p.wide = (c.width + 7) / 8 * 8;
  p.small_tall = (p.half_height + 7) / 8 * 8, p.small_wide = (p.half_width + 7) / 8 * 8;
  p.luma = (int*)c.planes;
  p.blue = p.luma + (i64)p.tall * p.wide;
  p.red = p.blue + (i64)p.small_tall * p.small_wide;
  split(p, c.now);
  int forward[64];
  float steps[2][64];
  for (int place = 0; place < 64; ++place) {
    forward[place] = tables.matrix[place % 8 * 8 + place / 8];
    steps[0][place] = (float)within((within(tables.luminance[place], 0, 255) * scale + 50) / 100, 1, 255);
    steps[1][place] = (float)within((within(tables.chrominance[place], 0, 255) * scale + 50) / 100, 1, 255);
  }
  SYNC;
  const int across = p.wide / 8, small_across = p.small_wide / 8;
  const int blocks = p.tall / 8 * across, small_blocks = p.small_tall / 8 * small_across;
#ifdef __CUDACC__
  EACH(block, blocks + 2 * small_blocks) {
#else
  for (int block = 0; block < blocks + 2 * small_blocks; ++block) {
#endif
    if (block < blocks) {
      round_trip(p.luma + (i64)(block / across) * 8 * p.wide + block % across * 8, p.wide, tables.matrix, forward,
                 steps[0]);
    } else {
      const int own = (block - blocks) % small_blocks;
      int* plane = block - blocks < small_blocks ? p.blue : p.red;
      round_trip(plane + (i64)(own / small_across) * 8 * p.small_wide + own % small_across * 8, p.small_wide,
                 tables.matrix, forward, steps[1]);
    }
  }
  SYNC;
  merge(p, c.now);
  SYNC;
}

#endif  // BLOODCELL_ENGINE_H_
