// PLACEHOLDER
#pragma once
namespace fused_logistic {
template <class T>
struct Coefficients;
template <>
struct Coefficients<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr float exp_lowest = -0x1.a400000000000p+6f;
  static constexpr float exp_shifter = 0x1.8000800000000p+23f;
  static constexpr float exp_unbias = 0x1.0000000000000p-64f;
  static constexpr float log2_e = 0x1.7154760000000p+0f;
  static constexpr float ln2_high = 0x1.62e4000000000p-1f;
  static constexpr float ln2_low = 0x1.7f7d1c0000000p-20f;
  struct Exp {
    static constexpr int count = 5;
    FL_FN constexpr float at(int i) {
      constexpr float c[] = {0x1.0000000000000p-1f, 0x1.5554040000000p-3f, 0x1.5554640000000p-5f, 0x1.126fac0000000p-7f, 0x1.6da7580000000p-10f};
      return c[i];
    }
  };
  struct Log1p {
    static constexpr int count = 9;
    FL_FN constexpr float at(int i) {
      constexpr float c[] = {-0x1.ffffc00000000p-2f, 0x1.554c9c0000000p-2f, -0x1.ff11c20000000p-3f, 0x1.9302020000000p-3f, -0x1.3996420000000p-3f, 0x1.b2c2a20000000p-4f, -0x1.d3784e0000000p-5f, 0x1.4628b00000000p-6f, -0x1.aad1ee0000000p-9f};
      return c[i];
    }
  };
};
template <>
struct Coefficients<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double exp_lowest = -0x1.7580000000000p+9;
  static constexpr double exp_shifter = 0x1.8000000000200p+52;
  static constexpr double exp_unbias = 0x1.0000000000000p-512;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  struct Exp {
    static constexpr int count = 12;
    FL_FN constexpr double at(int i) {
      constexpr double c[] = {0x1.0000000000000p-1, 0x1.5555555555555p-3, 0x1.5555555555555p-5, 0x1.1111111111111p-7, 0x1.6c16c16c16c17p-10, 0x1.a01a01a01a01ap-13, 0x1.a01a01a01a01ap-16, 0x1.71de3a556c734p-19, 0x1.27e4fb7789f5cp-22, 0x1.ae64567f544e4p-26, 0x1.1eed8eff8d898p-29, 0x1.6124613a86d09p-33};
      return c[i];
    }
  };
  struct Log1p {
    static constexpr int count = 22;
    FL_FN constexpr double at(int i) {
      constexpr double c[] = {-0x1.0000000000000p-1, 0x1.5555555555539p-2, -0x1.fffffffffdc48p-3, 0x1.9999999909736p-3, -0x1.55555541f9be4p-3, 0x1.2492478aafb14p-3, -0x1.ffffd26b3de15p-4, 0x1.c71aa3aa16f49p-4, -0x1.998c06828c139p-4, 0x1.740f1739f111bp-4, -0x1.53f717a9a167dp-4, 0x1.363108bc954ffp-4, -0x1.16800aae65d08p-4, 0x1.dff188f2e1f27p-5, -0x1.7f5ee6f20c861p-5, 0x1.109dfa70fe734p-5, -0x1.4a9fa99293e99p-6, 0x1.46a9e3a1c84f5p-7, -0x1.f2aeed774010bp-9, 0x1.11825c4b06ef4p-10, -0x1.7d6fb5a5e2a16p-13, 0x1.f9f2cb626decdp-17};
      return c[i];
    }
  };
};
}  // namespace fused_logistic
