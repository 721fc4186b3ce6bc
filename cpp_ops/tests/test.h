// A C++ test is a program that runs `run_test` and fails if an expectation did not hold.
#ifndef DFPJAX_TESTS_TEST_H_
#define DFPJAX_TESTS_TEST_H_

#include <string>

namespace dfpjax {

// Each test defines it, and main.cc calls it. `quick` asks for fewer cases, for slow builds.
void run_test(bool quick);

void expect(bool right, const std::string& what);
inline void fail(const std::string& what) { expect(false, what); }

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_TEST_H_
