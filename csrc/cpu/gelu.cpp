// y = x Φ(x), Φ the normal distribution function or its form in tanh, and its first and second derivative: one pass each.
#include "../common.h"
#include "exponentials.h"
#include "pages.h"
#include "vec.h"

namespace gankernels {
namespace {

// erfc(z) = exp(-z^2) t q(2t - 1) for z >= 0, with t = 1 / (1 + 0.4 z): q interpolates at Chebyshev points, to the type's precision.
constexpr float kErfcFloat[] = {
    0.421612728f,   0.321860774f,    0.1815657f,      0.0684997675f, 0.0113435468f,   -0.00335315529f,
    -0.00192138204f, 0.00016544152f, 0.000266488318f, -1.07462366e-5f, -2.91685825e-5f};
constexpr double kErfcDouble[] = {
    0.42161272812228716,    0.32186073977565913,    0.18156564665923624,    0.068500458098456937,   0.011344620053006961,
    -0.0033572177220719152, -0.0019275142148602558, 0.00017568332129289109, 0.00028107755704410282, -2.3323227568742879e-5,
    -4.5042383849561384e-5, 7.8133370703975554e-6,  7.2995788074429428e-6,  -2.7029227929311638e-6, -9.3765969604778889e-7,
    7.8715367768384709e-7,  5.6458362699197582e-9,  -1.8154190430677077e-7, 4.6352631835431001e-8,  2.9533810699472047e-8,
    -1.4924861325413652e-8, -2.5151811216209776e-9, 1.9239685418809794e-9};

GK_INLINE float erfc_factor(float s) {
  float q = 0;
#pragma GCC unroll 16
  for (int i = 10; i >= 0; --i) q = q * s + kErfcFloat[i];
  return q;
}

GK_INLINE double erfc_factor(double s) {
  double q = 0;
#pragma GCC unroll 32
  for (int i = 22; i >= 0; --i) q = q * s + kErfcDouble[i];
  return q;
}

// Φ, Φ' and x Φ'': y = x Φ has the derivatives Φ + x Φ' and 2 Φ' + x Φ''.
template <bool tanh_form, class A>
GK_INLINE void distribution(A x, A& value, A& slope, A& x_bend) {
  if constexpr (tanh_form) {  // Φ = (1 + tanh u) / 2 = 1 / (1 + e^-2u), without a difference of near numbers
    constexpr A c = A(1.5957691216057308), a = A(0.044715);
    const A square = x * x, two_u = c * x * (A(1) + a * square), w = c * (A(1) + A(3) * a * square);
    const A e = fast_exp(x < 0 ? two_u : -two_u), near = A(1) / (A(1) + e), tanh_u = (x < 0 ? e - A(1) : A(1) - e) * near;
    const A spread = e * near * near;
    value = x < 0 ? e * near : near;
    slope = spread * w;
    x_bend = x * spread * (A(6) * a * c * x - tanh_u * w * w);
  } else {
    const A e = fast_exp(A(-0.5) * x * x), z = (x < 0 ? -x : x) * A(0.70710678118654752), t = A(1) / (A(1) + A(0.4) * z);
    const A tail = A(0.5) * e * t * erfc_factor(A(2) * t - A(1));
    value = x > 0 ? A(1) - tail : tail;
    slope = A(0.39894228040143268) * e;
    x_bend = -x * x * slope;
  }
}

// In float, Φ and y' are 1/2 + x p(x^2) / q(x^2): fits with least error on |x| < last, within 1e-8 and 4e-9, half the arithmetic of the
// exponential above. To the left of it y is less than 1e-7 and y' than 4e-8.
struct Quotient {
  float last;
  int terms;
  float numerator[8], denominator[8];
};
constexpr Quotient kDistribution = {
    5.6f, 6,
    {0.398942232f, 0.0343751088f, 0.00470719207f, 0.000173839595f, 6.35636889e-6f, 2.21455814e-8f},
    {1, 0.25283134f, 0.0289394986f, 0.00191291620f, 7.50978725e-5f, 1.18020751e-6f}};
constexpr Quotient kSlope = {
    6.0f, 8,
    {0.797884524f, -0.0223700963f, 0.0138573004f, 0.00020275166f, 3.40920233e-5f, 9.22584491e-7f, 1.70466858e-8f, 0},
    {1, 0.305296212f, 0.0441340283f, 0.00397156971f, 0.0002453294f, 1.03080538e-5f, 3.38992294e-7f, 1.31477473e-9f}};

template <const Quotient& f>
GK_INLINE float quotient(float x) {
  float inside = x < -f.last ? -f.last : x;
  inside = inside > f.last ? f.last : inside;
  const float square = inside * inside;
  float p = 0, q = 0;
#pragma GCC unroll 8
  for (int i = f.terms - 1; i >= 0; --i) {
    p = p * square + f.numerator[i];
    q = q * square + f.denominator[i];
  }
  return 0.5f + inside * p / q;
}

GK_INLINE float gelu_of(float x) {
  const float y = x * quotient<kDistribution>(x);
  return x < -kDistribution.last ? 0.0f : y;
}

GK_INLINE float slope_of(float x) {
  const float slope = quotient<kSlope>(x);
  return x < -kSlope.last ? 0.0f : slope;
}

// Rounded to the nearest, to even between two. A NaN that is computed from numbers of 16 bits stays one without being looked for.
template <class T, class A>
GK_INLINE T rounded(A y) {
  if constexpr (std::is_same_v<T, bfloat16_t>) {
    const auto bits = std::bit_cast<uint32_t>(y);
    return T(uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16), T::from_bits());
  } else {
    return T(y);
  }
}

template <bool tanh_form, class T>
GK_MULTIVERSION void gelu_chunk(const T* x, T* __restrict y, int64_t n) {
  using A = accumulate_t<T>;
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (!tanh_form && std::is_same_v<A, float>) {
      y[i] = rounded<T>(gelu_of(x[i]));
    } else {
      A value, slope, x_bend;
      distribution<tanh_form>(A(x[i]), value, slope, x_bend);
      y[i] = T(A(x[i]) * value);
    }
  }
}

template <bool tanh_form, class T>
GK_MULTIVERSION void gelu_bwd_chunk(const T* grad, const T* x, T* __restrict out, int64_t n) {
  using A = accumulate_t<T>;
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (!tanh_form && std::is_same_v<A, float>) {
      out[i] = rounded<T>(A(grad[i]) * slope_of(x[i]));
    } else {
      A value, slope, x_bend;
      distribution<tanh_form>(A(x[i]), value, slope, x_bend);
      out[i] = T(A(grad[i]) * (value + A(x[i]) * slope));
    }
  }
}

template <bool tanh_form, class T>
GK_MULTIVERSION void gelu_bwd_bwd_chunk(const T* v, const T* grad, const T* x, T* __restrict grad_out, T* __restrict x_out,
                                        int64_t n) {
  using A = accumulate_t<T>;
  for (int64_t i = 0; i < n; ++i) {
    A value, slope, x_bend;
    distribution<tanh_form>(A(x[i]), value, slope, x_bend);
    grad_out[i] = T(A(v[i]) * (value + A(x[i]) * slope));
    x_out[i] = T(A(v[i]) * A(grad[i]) * (A(2) * slope + x_bend));
  }
}

Tensor dense(const Tensor& x) {
  if (x.numel() == 0) return torch::stable::new_empty(x, x.sizes());  // its strides mean nothing
  return is_dense(x) ? x : as_contiguous(x);
}

// body(tanh_form, begin, end) with T and the form as compile-time constants
template <class Body>
void for_each_element(const char* op, const Tensor& x, bool tanh_form, const Body& body) {
  dispatch_floating(op, x.scalar_type(), [&]<class T>() {
    for_each_chunk(1, x.numel(), [&](int64_t, int64_t begin, int64_t end) {
      if (tanh_form)
        body.template operator()<true, T>(begin, end - begin);
      else
        body.template operator()<false, T>(begin, end - begin);
    });
  });
}

Tensor gelu(const Tensor& x_, bool tanh_form) {
  const Tensor x = dense(x_);
  Tensor y = on_huge_pages(torch::stable::empty_like(x));
  for_each_element("gelu", x, tanh_form, [&]<bool form, class T>(int64_t at, int64_t n) {
    gelu_chunk<form>(data<T>(x) + at, mutable_data<T>(y) + at, n);
  });
  return y;
}

Tensor gelu_bwd(const Tensor& grad_, const Tensor& x_, bool tanh_form) {
  const char* op = "gelu_bwd";
  check_cpu(op, "grad", grad_);
  check_same_shape(op, "grad", grad_, "x", x_);
  const Tensor x = dense(x_), grad = in_layout_of(x, grad_);
  Tensor out = on_huge_pages(torch::stable::empty_like(x));
  for_each_element(op, x, tanh_form, [&]<bool form, class T>(int64_t at, int64_t n) {
    gelu_bwd_chunk<form>(data<T>(grad) + at, data<T>(x) + at, mutable_data<T>(out) + at, n);
  });
  return out;
}

std::tuple<Tensor, Tensor> gelu_bwd_bwd(const Tensor& grad_grad_, const Tensor& grad_, const Tensor& x_, bool tanh_form) {
  const char* op = "gelu_bwd_bwd";
  check_cpu(op, "grad", grad_);
  check_cpu(op, "grad_grad", grad_grad_);
  check_same_shape(op, "grad", grad_, "x", x_);
  check_same_shape(op, "grad_grad", grad_grad_, "x", x_);
  const Tensor x = dense(x_), grad = in_layout_of(x, grad_), v = in_layout_of(x, grad_grad_);
  Tensor grad_out = on_huge_pages(torch::stable::empty_like(x)), x_out = on_huge_pages(torch::stable::empty_like(x));
  for_each_element(op, x, tanh_form, [&]<bool form, class T>(int64_t at, int64_t n) {
    gelu_bwd_bwd_chunk<form>(data<T>(v) + at, data<T>(grad) + at, data<T>(x) + at, mutable_data<T>(grad_out) + at,
                             mutable_data<T>(x_out) + at, n);
  });
  return {grad_out, x_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gankernels, CPU, m) {
  m.impl("gelu", TORCH_BOX(&gelu));
  m.impl("gelu_bwd", TORCH_BOX(&gelu_bwd));
  m.impl("gelu_bwd_bwd", TORCH_BOX(&gelu_bwd_bwd));
}

}  // namespace gankernels
