// Whole registers of bytes at a time, by AVX-512 with VBMI: what compilers make of lookups in tables of 256 bytes, and of
// three bytes here against four there, goes a byte at a time. Each function does as many sixteens of pixels as there are
// and returns how many pixels that was; the engine's own loop does the rest.
//
// What belongs here: moving bytes. What they mean is engine.h's and program.h's business.
#ifndef BLOODCELL_BYTES_H_
#define BLOODCELL_BYTES_H_

#include <immintrin.h>

static const int kSixteen = 16;  // pixels of a register

// Levels, three a pixel, as pixels.
FN int join_bytes(const u8* levels, u32* pixels, int count) {
  u8 from[64];  // for each byte of the result, which one it is
  for (int byte = 0; byte < 64; ++byte) from[byte] = (u8)(byte / 4 * 3 + byte % 4);
  const __m512i where = _mm512_loadu_si512(from);
  const int whole = count / kSixteen * kSixteen;
  for (int first = 0; first < whole; first += kSixteen) {
    const __m512i these = _mm512_maskz_loadu_epi8(0xFFFFFFFFFFFFu, levels + 3 * (i64)first);  // 48 of 64 bytes
    _mm512_storeu_si512(pixels + first, _mm512_maskz_permutexvar_epi8(0x7777777777777777u, where, these));
  }
  return whole;
}

// Pixels as levels, three a pixel. `around`: past the caches, where they can be stored so.
FN int part_bytes(const u32* pixels, float* levels, int count, bool around) {
  __m512i where[3];
  for (int third = 0; third < 3; ++third) {
    u8 from[64];
    for (int byte = 0; byte < 64; ++byte) {
      const int level = 16 * third + byte / 4;
      from[byte] = (u8)(level / 3 * 4 + level % 3);
    }
    where[third] = _mm512_loadu_si512(from);
  }
  const int whole = count / kSixteen * kSixteen;
  around = around && (u64)levels % 64 == 0;
  for (int first = 0; first < whole; first += kSixteen) {
    const __m512i these = _mm512_loadu_si512(pixels + first);
    for (int third = 0; third < 3; ++third) {
      const __m512i numbers = _mm512_maskz_permutexvar_epi8(0x1111111111111111u, where[third], these);
      float* to = levels + 3 * (i64)first + 16 * third;
      if (around) _mm512_stream_ps(to, _mm512_cvtepi32_ps(numbers));
      else _mm512_storeu_ps(to, _mm512_cvtepi32_ps(numbers));
    }
  }
  if (around) _mm_sfence();
  return whole;
}

// Each channel through its curve; `alike`: through the first of them.
FN int look_up_bytes(u32* pixels, const u8 (*curve)[256], bool alike, int count) {
  const __mmask64 own[3] = {alike ? 0x7777777777777777u : 0x1111111111111111u, 0x2222222222222222u,
                            0x4444444444444444u};
  __m512i quarter[3][4];
  for (int number = 0; number < 3; ++number) {
    for (int part = 0; part < 4; ++part) quarter[number][part] = _mm512_loadu_si512(curve[number] + 64 * part);
  }
  const int whole = count / kSixteen * kSixteen;
  for (int first = 0; first < whole; first += kSixteen) {
    const __m512i levels = _mm512_loadu_si512(pixels + first);
    const __mmask64 upper = _mm512_movepi8_mask(levels);
    __m512i found = _mm512_setzero_si512();
    for (int number = 0; number < (alike ? 1 : 3); ++number) {
      const __m512i* of = quarter[number];
      const __m512i low = _mm512_maskz_permutex2var_epi8(own[number] & ~upper, of[0], levels, of[1]);
      const __m512i high = _mm512_maskz_permutex2var_epi8(own[number] & upper, of[2], levels, of[3]);
      found = _mm512_or_si512(found, _mm512_or_si512(low, high));
    }
    _mm512_storeu_si512(pixels + first, found);
  }
  return whole;
}

#endif  // BLOODCELL_BYTES_H_
