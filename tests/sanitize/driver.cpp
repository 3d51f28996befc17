// Runs every CPU kernel in memory that ends where it must (guarded.h), on every instruction set that this CPU has:
//
//     driver all       every loss, output, terms, dtype, layout; lengths from 0 to 130 and around the borders of rows and chunks
//     driver threads   several chunks or parts on several threads at once, and what threads share beside them
//
// make sanitize builds and runs this with sanitizers.
#include <atomic>
#include <stdexcept>

#include "../../csrc/cpu/memory.h"
#include "elements.h"
#include "layer_and_pairs.h"

namespace fused_logistic {
void refuse(const char* op, const char* what) { fail("%s: %s", op, what); }
}  // namespace fused_logistic

namespace {

constexpr int64_t kShort = 131, kRow = fl::kLanes, kChunk = fl::kChunk;

template <class F>
void for_each_kernel(const F& f) {
  constexpr DType kTargets[] = {DType::kFloat64, DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kUInt8,
                                DType::kInt8,    DType::kInt16,   DType::kInt32,   DType::kInt64};
  for (int output = 0; output < kOutputs; ++output) {
    for (int loss = 0; loss < kLosses; ++loss) {
      if (loss == 1) continue;  // binary cross entropy has no exponents
      for (int terms = 0; terms < kTerms; ++terms) {
        for (int logits = 0; logits < 4; ++logits) {
          for (const DType target : kTargets) {
            if (loss > 1 && target > DType::kUInt8) continue;  // converted before the loss is asked
            f(KernelOf{Output(output), loss, fl::Terms(terms), DType(logits), target});
          }
        }
      }
    }
  }
}

void all(ElementsCheck& elements, LayerCheck& layer, PairsCheck& pairs, uint64_t seed) {
  // Every kernel has some of these lengths, and all of them together many times over.
  const int64_t longer[] = {kRow - 1,       kRow,       kRow + 1, 2 * kRow,       2 * kRow + 130,
                            4095,           kChunk - 1, kChunk,   kChunk + 1,     2 * kChunk - 1,
                            2 * kChunk + 2, 3 * kChunk, 3 * 2730, 9 * kRow + 300, kChunk + kRow - 1};
  Random random(seed);
  uint64_t number = 0;
  for_each_kernel([&](const KernelOf& of) {
    ++number;
    for (int64_t length = number % 16; length < kShort; length += 16) {
      elements.check(elements.draw(of, length, length % 4 == 3, random), false);
    }
    if (number % 4 != 0) return;
    elements.check(elements.draw(of, longer[number / 4 % std::size(longer)], random.one_in(4), random), false);
  });
  for (const Output output : {Output::kLossSum, Output::kLossSumAndGrad, Output::kLoss, Output::kGradLogits}) {
    for (int input = 0; input < 4; ++input) {
      for (int64_t features = 0; features < kShort; ++features) {
        const int64_t rows = features % 3 == 0 ? int64_t(random.below(300)) : int64_t(random.below(20));
        layer.check(layer.draw(output, DType(input), rows, features, random.one_in(4), random), false);
      }
      for (const int64_t features : {1023, 4097, 9000, 20000}) {
        layer.check(layer.draw(output, DType(input), features > 8192 ? 3 : 9, features, false, random), false);
      }
    }
  }
  for (const DType dtype : {DType::kFloat64, DType::kFloat32}) {
    for (int64_t numel = 0; numel < kShort; ++numel) {
      const int64_t rows = divisor_of(numel, random);
      pairs.check(pairs.draw(dtype, rows, numel / rows, random.one_in(4), random), false);
    }
    for (int i = 0; i < 40; ++i) {
      const int64_t columns = 1 + int64_t(random.below(160)), rows = 1 + int64_t(random.below(160));
      pairs.check(pairs.draw(dtype, rows, columns, random.one_in(4), random), false);
    }
  }
}

void threads(ElementsCheck& elements, LayerCheck& layer, PairsCheck& pairs, uint64_t seed) {
  Random random(seed);
  uint64_t number = 0;
  for_each_kernel([&](const KernelOf& of) {
    if (++number % 13 != seed % 13) return;
    const int64_t numel = 2 * kChunk + int64_t(random.below(uint64_t(kRow)));
    elements.check(elements.draw(of, numel, random.one_in(4), random), true);
  });
  for (const Output output : {Output::kLossSum, Output::kLossSumAndGrad, Output::kLoss, Output::kGradLogits}) {
    for (int i = 0; i < 16; ++i) {
      const DType input = DType(i % 4);
      layer.check(layer.draw(output, input, 500 + int64_t(random.below(99)), 64 + i, false, random), true);
    }
  }
  for (int i = 0; i < 24; ++i) {
    const DType dtype = DType(i % 2);
    pairs.check(pairs.draw(dtype, 150 + i, 151, random.one_in(4), random), true);
  }
}

// What calls of several threads share: the kept blocks of memory, and which instruction set is in use.
void shared() {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> running;
  for (int k = 0; k < kThreads; ++k) {
    running.emplace_back([&wrong, k] {
      for (int i = 0; i < 200; ++i) {
        const size_t bytes = fl::kLargeBlock + size_t((i + k) % 3);
        char* const block = static_cast<char*>(fl::take_block(bytes));
        block[0] = block[bytes - 1] = char(k);
        fl::set_isa(fl::isa().name);
        std::this_thread::yield();
        wrong += block[0] != char(k) || block[bytes - 1] != char(k) || reinterpret_cast<uintptr_t>(block) % 64 != 0;
        fl::release_block(block);
        if (i % 50 == 0) fl::empty_cache();
        wrong += fl::cached_bytes() > 2 * (fl::kLargeBlock + 2);
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  fl::empty_cache();
  g_case = "memory of several threads";
  if (wrong != 0) fail("%d blocks were another thread's, or not aligned, or too many were kept", wrong.load());
}

// Sums of any number of chunks, in their buffer and no further.
void sums() {
  GuardedPages pages;
  Random random(0);
  for (const int64_t count : {0, 1, 2, 63, 64, 1023, 1024, 1025, 8191, 8192, 8193, 20000}) {
    double* const partials = reinterpret_cast<double*>(pages.place(size_t(count) * 8, 8, random));
    for (int64_t i = 0; i < count; ++i) partials[i] = double(i);
    g_case = std::to_string(count) + " partial sums";
    const double sum = fl::ordered_sum(partials, count);
    if (sum != double(count * (count - 1) / 2)) fail("they come to %.17g", sum);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
  const std::vector<const fl::Isa*> isas = supported_isas();
  ElementsCheck elements(isas);
  LayerCheck layer(isas);
  PairsCheck pairs(isas);
  if (what == "all") {
    all(elements, layer, pairs, seed);
    sums();
  } else if (what == "threads") {
    threads(elements, layer, pairs, seed);
    shared();
  } else {
    fprintf(stderr, "driver all|threads [SEED]\n");
    return 2;
  }
  std::string names;
  for (const fl::Isa* isa : isas) names += std::string(" ") + isa->name;
  printf("%s, on%s: %zu kinds of kernel of elements in %llu runs, %zu of a layer in %llu, %zu of pairs in %llu\n",
         what.c_str(), names.c_str(), elements.kernels(), (unsigned long long)elements.runs(), layer.kernels(),
         (unsigned long long)layer.runs(), pairs.kernels(), (unsigned long long)pairs.runs());
}
