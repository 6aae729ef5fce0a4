// Activations for sums that will be rounded to 16 bits, in a handful of instructions; f32 results
// take the accurate ones (epilogue.cuh). Reference: src/ref/ops.c.
//
// All have the form  y = max(v, 0) - a g(a),  a = |v|,  where g falls from 1/2 to 0 and is known to
// a small *relative* error, so that y is, for either sign: nothing cancels.
//   gelu       g(a) = Phi(-a) = 2^P(a), P a polynomial of degree 6, the minimax fit of log2 Phi(-a)
//              on 0..5.7; beyond, where |y| < 7e-8, it keeps falling
//   silu       g(a) = 1 / (1 + e^a) = s R(s), s = e^-a, R the polynomial of degree 5 nearest to
//              1 / (1 + s) on 0..1 in relative error (by T_6, in closed form)
//   gelu_tanh  as silu, of 2 sqrt(2 / pi) (a + 0.044715 a^3)
//
// Relative errors: gelu 2^-14.9 (|v| < 5.7), silu and gelu_tanh 2^-14.2, with 2^-20 for ex2.approx
// and the rounding of exponents. Half a step of f16 is 2^-12 to 2^-11, of bf16 2^-9 to 2^-8. Held
// to 2^-14 by tests/kernel/test_cuda_epilogues.c.
//
// NaN stays NaN: a is taken by min.NaN, which also keeps infinity out of products with zero.
#ifndef ESP_CUDA_SM90_ACTIVATE_CUH
#define ESP_CUDA_SM90_ACTIVATE_CUH

namespace activate
{

__device__ __forceinline__ float power_of_2(float v)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
    return power;
}

__device__ __forceinline__ float magnitude(float v, float most)
{
    float a;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(fabsf(v)), "f"(most));
    return a;
}

// For relu, 0; below all numbers where there is none.
__device__ __forceinline__ float at_least(float v, float floor)
{
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(v), "f"(floor));
    return larger;
}

__device__ __forceinline__ float gelu(float v)
{
    float a = magnitude(v, 12.0f); // P turns up again at 15
    float p = fmaf(2.48627166e-05f, a, -6.41125022e-04f);
    p = fmaf(p, a, 7.37465639e-03f);
    p = fmaf(p, a, -5.16731553e-02f);
    p = fmaf(p, a, -4.60677564e-01f);
    p = fmaf(p, a, -1.15043628f);
    p = fmaf(p, a, -1.00004613f);
    return fmaf(-a, power_of_2(p), fmaxf(v, 0.0f));
}

// silu and gelu_tanh: s = 2^(a (linear + cubic a^2)).
struct gate {
    float linear, cubic;

    static __device__ __forceinline__ gate of(bool tanh)
    {
        // log2(e); 2 sqrt(2 / pi) log2(e), and that times 0.044715
        return tanh ? gate{-2.30220820f, -0.102943240f} : gate{-1.44269504f, 0.0f};
    }
    __device__ __forceinline__ float apply(float v) const
    {
        float a = magnitude(v, 200.0f);
        float s = power_of_2(a * fmaf(cubic, a * a, linear));
        float r = fmaf(-0.104484469f, s, 0.417937875f);
        r = fmaf(r, s, -0.770572901f);
        r = fmaf(r, s, 0.953420758f);
        r = fmaf(r, s, -0.996275723f);
        r = fmaf(r, s, 0.999948978f);
        return fmaf(-a * s, r, fmaxf(v, 0.0f));
    }
};

} // namespace activate

#endif
