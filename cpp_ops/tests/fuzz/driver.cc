// Calls a fuzz target where there is no libFuzzer. The inputs are random, but the same in every
// run. -max_total_time=SECONDS limits the run; -input=NUMBER repeats one input.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" uint64_t plans_run;

namespace {

unsigned long long input = 0;

[[maybe_unused]] void tell_input() { std::fprintf(stderr, "repeat with -input=%llu\n", input); }

void run_input() {
  std::mt19937_64 random(input);
  std::vector<uint8_t> data(64 + random() % 256);
  std::generate(data.begin(), data.end(), [&] { return static_cast<uint8_t>(random()); });
  LLVMFuzzerTestOneInput(data.data(), data.size());
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 10;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = option.substr(option.find('=') + 1);
    if (option.rfind("-max_total_time=", 0) == 0) {
      seconds = std::stod(value);
    } else if (option.rfind("-input=", 0) == 0) {
      input = std::stoull(value);
      run_input();
      return 0;
    } else {
      std::fprintf(stderr, "%s: unknown option\n", argv[i]);
      return 2;
    }
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(tell_input);
#endif
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
         seconds) {
    run_input();
    ++input;
  }
  std::printf("%llu inputs, of which %llu were plans that ran\n", input,
              static_cast<unsigned long long>(plans_run));
  return plans_run == 0 ? 1 : 0;
}
