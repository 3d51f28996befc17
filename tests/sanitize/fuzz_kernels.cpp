// libFuzzer on every CPU kernel: bytes become a problem of elements, of a layer or of pairs, and what driver.cpp checks must hold.
// make fuzz builds and runs this.
#include "elements.h"
#include "layer_and_pairs.h"

namespace fused_logistic {
void refuse(const char* op, const char* what) { fail("%s: %s", op, what); }
}  // namespace fused_logistic

namespace {

// Most lengths are short; some cross a row, few a chunk.
int64_t draw_length(Choices& choices) {
  switch (choices.below(32)) {
    case 0:
      return int64_t(choices.below(2 * uint64_t(fl::kChunk) + 100));
    case 1:
    case 2:
      return int64_t(choices.below(2500));
    default:
      return int64_t(choices.below(200));
  }
}

void elements_of(Choices& choices) {
  static ElementsCheck check(supported_isas());
  KernelOf of;
  of.output = Output(choices.below(kOutputs));
  of.loss = int(choices.below(kLosses));
  of.terms = fl::Terms(choices.below(kTerms));
  of.logits = DType(choices.below(4));
  of.target = DType(choices.below(9));
  const bool any = choices.one_in(2);
  const int64_t length = draw_length(choices);
  check.check(check.draw(of, length, any, choices), false);
}

void layer_of(Choices& choices) {
  static LayerCheck check(supported_isas());
  const Output output = choices.of({Output::kLossSum, Output::kLossSumAndGrad, Output::kLoss, Output::kGradLogits});
  const DType input = DType(choices.below(4));
  const bool any = choices.one_in(2);
  const int64_t rows = int64_t(choices.below(90)), features = draw_length(choices) % 1100;
  check.check(check.draw(output, input, rows, features, any, choices), false);
}

void pairs_of(Choices& choices) {
  static PairsCheck check(supported_isas());
  const DType dtype = DType(choices.below(2));
  const bool any = choices.one_in(2);
  const int64_t rows = 1 + int64_t(choices.below(60)), columns = 1 + int64_t(choices.below(200));
  check.check(check.draw(dtype, rows, columns, any, choices), false);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes choices(data, size);
  switch (choices.below(8)) {
    case 0:
      layer_of(choices);
      break;
    case 1:
      pairs_of(choices);
      break;
    default:
      elements_of(choices);
  }
  return 0;
}
