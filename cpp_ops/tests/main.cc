// The main function of the C++ tests: PROGRAM [--quick].
#include <cstdio>
#include <cstring>

#include "runtime/scratch.h"
#include "tests/test.h"

namespace dfpjax {
namespace {

int failures = 0;

}  // namespace

void expect(bool right, const std::string& what) {
  if (right) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

}  // namespace dfpjax

// Makes failed allocations return null under the sanitizers, too.
#define DFPJAX_EXPORTED __attribute__((visibility("default")))
extern "C" {
DFPJAX_EXPORTED const char* __asan_default_options() { return "allocator_may_return_null=1"; }
DFPJAX_EXPORTED const char* __tsan_default_options() { return "allocator_may_return_null=1"; }
}

int main(int argc, char** argv) {
  dfpjax::run_test(argc > 1 && std::strcmp(argv[1], "--quick") == 0);
  dfpjax::release_scratch();
  std::printf("%d failures\n", dfpjax::failures);
  return dfpjax::failures == 0 ? 0 : 1;
}
