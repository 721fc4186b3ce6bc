// What every C++ test is: a program that runs `run_test` and counts what is not as expected.
#ifndef DFPJAX_TESTS_TEST_H_
#define DFPJAX_TESTS_TEST_H_

#include <string>

namespace dfpjax {

// Each test defines it; main.cc calls it. `quick` asks for less, for builds that are slow.
void run_test(bool quick);

void expect(bool right, const std::string& what);
inline void fail(const std::string& what) { expect(false, what); }

}  // namespace dfpjax

#endif  // DFPJAX_TESTS_TEST_H_
