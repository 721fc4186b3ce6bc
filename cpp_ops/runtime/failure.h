// Turns exceptions into errors for callers that do not use exceptions.
#ifndef DFPJAX_RUNTIME_FAILURE_H_
#define DFPJAX_RUNTIME_FAILURE_H_

#include <exception>
#include <string>

namespace dfpjax {

struct Failure {
  enum class Kind { kOutOfMemory, kBadArgument, kInternal };
  Kind kind;
  std::string message;
};

// `exception` must not be null.
Failure describe(const std::exception_ptr& exception);

}  // namespace dfpjax

#endif  // DFPJAX_RUNTIME_FAILURE_H_
