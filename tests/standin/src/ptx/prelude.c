/* What every translated kernel begins with. Registers hold bits; each instruction reads them as
   the type that it names. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>

typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int8_t s8; typedef int16_t s16; typedef int32_t s32; typedef int64_t s64;
typedef unsigned __int128 u128; typedef __int128 s128;
typedef float f32; typedef double f64;

/* An allocation that an instruction touched last; `len` 0 is none. */
struct site { u64 lo, len; };

/* The values of a warp that met at one instruction. */
struct gather { u32 mask, kind; u64 value[32]; };

struct thread { u32 tid[3]; u32 lane, warp, linear; u64 stack_lo, stack_len; u32 meeting, padding; };

/* Who touched two bytes of shared memory last, between which barriers (`epoch`) and which
   barriers of its warp (`meeting`). */
struct cell { u32 write_epoch, write_meeting, read_epoch, read_meeting; u16 writer, reader, reader_warp, padding; };

/* The launch. The layout is known to `exec/launch.rs`. */
struct context {
  const u8 *params;
  u8 *shared;
  const u64 *globals;
  struct site *sites;
  u64 shared_len, dynamic_len;
  u32 ntid[3], nctaid[3], ctaid[3];
  /* Counts barriers, over all blocks. */
  u32 epoch;
  struct cell *cells;
  /* Ends the launch; does not return. */
  void (*fail)(struct context *, struct thread *, u32 code, u64 address, u64 size, const char *what);
  /* Finds the allocation that holds these bytes. */
  u32 (*find)(struct context *, u64 address, u64 size, struct site *);
  /* Waits for the other lanes of the mask. */
  const struct gather *(*meet)(struct context *, struct thread *, u32 kind, u32 mask, u64 value);
  /* Notes an access to global memory; null unless races are looked for. */
  void (*watch)(struct context *, struct thread *, u64 address, u64 size, u32 mode, const char *what);
  /* Waits at a barrier; answers how many threads came, and how many with a true predicate. */
  u64 (*barrier)(struct context *, struct thread *, u32 id, u32 count, u32 wait, u32 predicate);
};

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define INLINE static inline __attribute__((always_inline, unused))
#define COLD static __attribute__((noinline, unused))

enum { READ, WRITE, ATOMIC };
/* A reader or writer that is several: lanes of one warp, or threads of any. */
enum { SEVERAL = 0xffff, ATOMICS = 0xfffe };
enum { RACE = 0x10000, ILLEGAL_ADDRESS = 700, ASSERT = 710, ILLEGAL_INSTRUCTION = 715, MISALIGNED = 716, LAUNCH_FAILED = 719 };

/* Finds two threads that touch the same shared memory, one of them writing, with no barrier
   between: what comes first is left to chance. Single bytes are not looked at. */
COLD void trace(struct context *c, struct thread *t, u64 a, u64 n, int mode, const char *what) {
  u16 me = (u16)t->linear, warp = (u16)t->warp;
  if (n < 2 || !c->cells) return;
  for (u64 i = a / 2; i < (a + n) / 2; i++) {
    struct cell *k = c->cells + i;
    if (k->write_epoch == c->epoch && k->writer != me && !(mode == ATOMIC && k->writer == ATOMICS)
        && !(k->writer != ATOMICS && k->writer / 32 == warp && k->write_meeting < t->meeting))
      c->fail(c, t, RACE | k->writer, a, 0, what);
    if (mode == READ) {
      if (k->read_epoch != c->epoch) { k->reader = me; k->reader_warp = warp; }
      else {
        if (k->reader != me) k->reader = SEVERAL;
        if (k->reader_warp != warp) k->reader_warp = SEVERAL;
      }
      k->read_epoch = c->epoch; k->read_meeting = t->meeting;
    } else {
      if (k->read_epoch == c->epoch && k->reader != me && !(k->reader_warp == warp && k->read_meeting < t->meeting))
        c->fail(c, t, RACE | k->reader, a, 0, what);
      k->write_epoch = c->epoch; k->write_meeting = t->meeting;
      k->writer = mode == ATOMIC ? ATOMICS : me;
    }
  }
}
COLD void slow(struct context *c, struct thread *t, u64 a, u64 n, struct site *s, const char *what, int generic, int mode) {
  if (a & (n - 1)) c->fail(c, t, MISALIGNED, a, n, what);
  if (generic && a - (u64)c->shared < c->shared_len && c->shared_len - (a - (u64)c->shared) >= n) {
    trace(c, t, a - (u64)c->shared, n, mode, what);
    return;
  }
  if (generic && a - t->stack_lo < t->stack_len) return;
  if (!c->find(c, a, n, s)) c->fail(c, t, ILLEGAL_ADDRESS, a, n, what);
}
/* The address of global memory, checked. */
INLINE u64 global(struct context *c, struct thread *t, u64 a, u64 n, u32 site, int mode, const char *what) {
  struct site *s = c->sites + site;
  u64 o = a - s->lo;
  if (!LIKELY(o < s->len && s->len - o >= n && !(a & (n - 1)))) slow(c, t, a, n, s, what, 0, 0);
  if (!LIKELY(!c->watch)) c->watch(c, t, a, n, mode, what);
  return a;
}
INLINE u64 generic(struct context *c, struct thread *t, u64 a, u64 n, u32 site, int mode, const char *what) {
  struct site *s = c->sites + site;
  u64 o = a - s->lo;
  if (!LIKELY(o < s->len && s->len - o >= n && !(a & (n - 1)))) slow(c, t, a, n, s, what, 1, mode);
  if (!LIKELY(!c->watch) && a - s->lo < s->len) c->watch(c, t, a, n, mode, what);
  return a;
}
INLINE u64 shared(struct context *c, struct thread *t, u64 a, u64 n, u32 site, int mode, const char *what) {
  (void)site;
  if (!LIKELY(a < c->shared_len && c->shared_len - a >= n)) c->fail(c, t, ILLEGAL_ADDRESS, a, n, what);
  if (!LIKELY(!(a & (n - 1)))) c->fail(c, t, MISALIGNED, a, n, what);
  trace(c, t, a, n, mode, what);
  return (u64)c->shared + a;
}
INLINE u64 own(struct context *c, struct thread *t, u64 a, u64 n, u32 site, int mode, const char *what) {
  (void)site; (void)mode;
  if (!LIKELY(!(a & (n - 1)))) c->fail(c, t, MISALIGNED, a, n, what);
  return a;
}
#define LOAD(T, a) ({ T v_; memcpy(&v_, (const void *)(a), sizeof v_); v_; })
#define STORE(T, a, x) do { T v_ = (T)(x); memcpy((void *)(a), &v_, sizeof v_); } while (0)

INLINE f32 F(u32 x) { f32 y; memcpy(&y, &x, 4); return y; }
INLINE u32 FB(f32 x) { u32 y; memcpy(&y, &x, 4); return y; }
INLINE f64 D(u64 x) { f64 y; memcpy(&y, &x, 8); return y; }
INLINE u64 DB(f64 x) { u64 y; memcpy(&y, &x, 8); return y; }
INLINE f32 Z(f32 x) { return fabsf(x) < 0x1p-126f ? copysignf(0.f, x) : x; }
INLINE f32 H(u16 x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
INLINE u16 HB(f32 x) { return (u16)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 0)); }
INLINE u16 HBz(f32 x) { return (u16)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 3)); }
INLINE u16 HBm(f32 x) { return (u16)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 1)); }
INLINE u16 HBp(f32 x) { return (u16)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 2)); }
INLINE f32 B(u16 x) { return F((u32)x << 16); }
INLINE u16 BB(f32 x) {
  u32 b = FB(x);
  if (x != x) return 0x7fff;
  return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
INLINE u16 BBz(f32 x) { return x != x ? 0x7fff : (u16)(FB(x) >> 16); }
/* Rounds to odd, so that a second rounding to fewer bits is right. */
INLINE f32 odd(f64 x) {
  f32 y = (f32)x;
  if (x != x || (f64)y == x) return y;
  u32 b = FB(y);
  if (fabs((f64)y) > fabs(x)) b -= 1;
  return F(b | 1);
}
INLINE f32 sat(f32 x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
INLINE f64 satd(f64 x) { return x > 0. ? (x < 1. ? x : 1.) : 0.; }
INLINE f32 relu(f32 x) { return x > 0.f || x != x ? x : 0.f; }
#define MINMAX(T, S, nan_) \
  INLINE T min_##S(T a, T b) { return a != a ? b : b != b ? a : a < b || (a == b && signbit(a)) ? a : b; } \
  INLINE T max_##S(T a, T b) { return a != a ? b : b != b ? a : a > b || (a == b && !signbit(a)) ? a : b; } \
  INLINE T nmin_##S(T a, T b) { return a != a || b != b ? (T)nan_ : min_##S(a, b); } \
  INLINE T nmax_##S(T a, T b) { return a != a || b != b ? (T)nan_ : max_##S(a, b); }
MINMAX(f32, f32, F(0x7fffffff))
MINMAX(f64, f64, NAN)

/* Arithmetic in a rounding mode other than to nearest: 1 down, 2 up, 3 to zero. */
#define ROUNDED(body) u32 old_ = _mm_getcsr(); _mm_setcsr((old_ & ~0x6000u) | mode << 13); body; _mm_setcsr(old_); return r
COLD f32 fma_f32(f32 a_, f32 b_, f32 c_, u32 mode) { volatile f32 a = a_, b = b_, c = c_; volatile f32 r; ROUNDED(r = fmaf(a, b, c)); }
COLD f32 add_f32(f32 a_, f32 b_, u32 mode) { volatile f32 a = a_, b = b_; volatile f32 r; ROUNDED(r = a + b); }
COLD f32 mul_f32(f32 a_, f32 b_, u32 mode) { volatile f32 a = a_, b = b_; volatile f32 r; ROUNDED(r = a * b); }
COLD f32 div_f32(f32 a_, f32 b_, u32 mode) { volatile f32 a = a_, b = b_; volatile f32 r; ROUNDED(r = a / b); }
COLD f32 sqrt_f32(f32 a_, u32 mode) { volatile f32 a = a_; volatile f32 r; ROUNDED(r = sqrtf(a)); }
COLD f32 nar_f32(f64 a_, u32 mode) { volatile f64 a = a_; volatile f32 r; ROUNDED(r = (f32)a); }
COLD f32 s64_f32(s64 a_, u32 mode) { volatile s64 a = a_; volatile f32 r; ROUNDED(r = (f32)a); }
COLD f64 fma_f64(f64 a_, f64 b_, f64 c_, u32 mode) { volatile f64 a = a_, b = b_, c = c_; volatile f64 r; ROUNDED(r = fma(a, b, c)); }
COLD f64 add_f64(f64 a_, f64 b_, u32 mode) { volatile f64 a = a_, b = b_; volatile f64 r; ROUNDED(r = a + b); }
COLD f64 mul_f64(f64 a_, f64 b_, u32 mode) { volatile f64 a = a_, b = b_; volatile f64 r; ROUNDED(r = a * b); }
COLD f64 div_f64(f64 a_, f64 b_, u32 mode) { volatile f64 a = a_, b = b_; volatile f64 r; ROUNDED(r = a / b); }
COLD f64 sqrt_f64(f64 a_, u32 mode) { volatile f64 a = a_; volatile f64 r; ROUNDED(r = sqrt(a)); }
COLD f64 s64_f64(s64 a_, u32 mode) { volatile s64 a = a_; volatile f64 r; ROUNDED(r = (f64)a); }

/* Float to integer saturates; NaN is 0, or the sign bit for 64 bits. */
INLINE s64 to_s(f64 x, s64 lo, s64 hi, int wide) {
  if (x != x) return wide ? INT64_MIN : 0;
  if (x <= (f64)lo) return lo;
  if (x >= (f64)hi) return hi;
  return (s64)x;
}
INLINE u64 to_u(f64 x, u64 hi, int wide) {
  if (x != x) return wide ? 1ull << 63 : 0;
  if (x <= 0) return 0;
  if (x >= (f64)hi) return hi;
  return (u64)x;
}
#define CLAMP(x, lo, hi) ({ __typeof__(x) x_ = (x); x_ < (lo) ? (__typeof__(x))(lo) : x_ > (hi) ? (__typeof__(x))(hi) : x_; })

INLINE u32 shl32(u32 a, u32 n) { return n > 31 ? 0 : a << n; }
INLINE u64 shl64(u64 a, u32 n) { return n > 63 ? 0 : a << n; }
INLINE u16 shl16(u16 a, u32 n) { return n > 15 ? 0 : (u16)(a << n); }
#define SHR(T, a, n, bits) ({ u32 n_ = (n); (T)((T)(a) >> (n_ > bits - 1 ? bits - 1 : n_)); })
#define SHRU(T, a, n, bits) ({ u32 n_ = (n); n_ > bits - 1 ? (T)0 : (T)((T)(a) >> n_); })
INLINE u64 bfe_u(u64 a, u32 b, u32 c, u32 bits) {
  b &= 255; c &= 255;
  if (!c || b >= bits) return 0;
  a >>= b;
  return c >= 64 ? a : a & ((1ull << c) - 1);
}
INLINE s64 bfe_s(s64 a, u32 b, u32 c, u32 bits) {
  b &= 255; c &= 255;
  if (!c) return 0;
  u32 top = b + c - 1 < bits - 1 ? b + c - 1 : bits - 1;
  u64 sign = ((u64)a >> top) & 1, x = b >= bits ? 0 : (u64)a >> b;
  u32 have = b >= bits ? 0 : (bits - b < c ? bits - b : c);
  if (have < 64) { u64 m = (1ull << have) - 1; x = sign ? x | ~m : x & m; }
  return (s64)x;
}
INLINE u64 bfi(u64 a, u64 base, u32 c, u32 d, u32 bits) {
  c &= 255; d &= 255;
  if (!d || c >= bits) return base;
  u64 m = d >= 64 ? ~0ull : (1ull << d) - 1;
  m <<= c;
  return (base & ~m) | ((a << c) & m);
}
INLINE u32 brev32(u32 x) { u32 r = 0; for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i); return r; }
INLINE u64 brev64(u64 x) { return (u64)brev32((u32)x) << 32 | brev32((u32)(x >> 32)); }
INLINE u32 prmt(u32 a, u32 b, u32 s) {
  u64 ab = (u64)b << 32 | a; u32 r = 0;
  for (int i = 0; i < 4; i++) {
    u32 k = s >> (4 * i) & 15; u8 v = (u8)(ab >> (8 * (k & 7)));
    if (k & 8) v = (v & 0x80) ? 0xff : 0;
    r |= (u32)v << (8 * i);
  }
  return r;
}
INLINE u32 lop3(u32 a, u32 b, u32 c, u32 t) {
  u32 r = 0;
  if (t & 1) r |= ~a & ~b & ~c;
  if (t & 2) r |= ~a & ~b & c;
  if (t & 4) r |= ~a & b & ~c;
  if (t & 8) r |= ~a & b & c;
  if (t & 16) r |= a & ~b & ~c;
  if (t & 32) r |= a & ~b & c;
  if (t & 64) r |= a & b & ~c;
  if (t & 128) r |= a & b & c;
  return r;
}
INLINE u32 shf_l(u32 a, u32 b, u32 n) { u64 v = (u64)b << 32 | a; return n > 31 ? a : (u32)(v << n >> 32); }
INLINE u32 shf_r(u32 a, u32 b, u32 n) { u64 v = (u64)b << 32 | a; return n > 31 ? b : (u32)(v >> n); }
INLINE s32 dp4a(u32 a, u32 b, s32 c, int as, int bs) {
  for (int i = 0; i < 4; i++) {
    s32 x = as ? (s8)(a >> (8 * i)) : (u8)(a >> (8 * i));
    s32 y = bs ? (s8)(b >> (8 * i)) : (u8)(b >> (8 * i));
    c = (s32)((u32)c + (u32)(x * y));
  }
  return c;
}
INLINE u32 tf32(u32 b) { return (b & 0x7f800000) == 0x7f800000 ? b : (b + 0x1000) & ~0x1fffu; }
INLINE u32 testp_finite(f64 x) { return isfinite(x); }

/* Shuffles: modes 0 up, 1 down, 2 bfly, 3 idx. Answers the value; `ok` is whether it was in range. */
INLINE u32 shuffle(struct context *c, struct thread *t, u32 mode, u32 a, u32 b, u32 k, u32 mask, u8 *ok) {
  const struct gather *g = c->meet(c, t, 1 + mode, mask, a);
  s32 lane = (s32)t->lane, bound = k & 31, seg = k >> 8 & 31, n = b & 31;
  s32 top = (lane & seg) | (bound & ~seg), low = lane & seg, j;
  u32 p;
  switch (mode) {
    case 0: j = lane - n; p = j >= top; break;
    case 1: j = lane + n; p = j <= top; break;
    case 2: j = lane ^ n; p = j <= top; break;
    default: j = low | (n & ~seg); p = j <= top; break;
  }
  if (!p) j = lane;
  *ok = (u8)p;
  /* What a lane that is not there would have given is undefined. */
  return g->mask >> j & 1 ? (u32)g->value[j] : 0xdeadbeef;
}
INLINE u32 ballot(const struct gather *g) { u32 r = 0; for (int i = 0; i < 32; i++) if (g->mask >> i & 1 && g->value[i]) r |= 1u << i; return r; }
INLINE u32 match_any(const struct gather *g, u64 v) { u32 r = 0; for (int i = 0; i < 32; i++) if (g->mask >> i & 1 && g->value[i] == v) r |= 1u << i; return r; }
INLINE u32 reduce(const struct gather *g, u32 how) {
  u32 r = 0; int first = 1;
  for (int i = 0; i < 32; i++) if (g->mask >> i & 1) {
    u32 v = (u32)g->value[i];
    if (first) { r = v; first = 0; continue; }
    switch (how) {
      case 0: r += v; break;
      case 1: r = v < r ? v : r; break;
      case 2: r = v > r ? v : r; break;
      case 3: r = (s32)v < (s32)r ? v : r; break;
      case 4: r = (s32)v > (s32)r ? v : r; break;
      case 5: r &= v; break;
      case 6: r |= v; break;
      default: r ^= v; break;
    }
  }
  return r;
}
