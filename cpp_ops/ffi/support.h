// Shared by the XLA handlers: the thread pool, the checks of arguments, and errors.
#ifndef DFPJAX_FFI_SUPPORT_H_
#define DFPJAX_FFI_SUPPORT_H_

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/failure.h"
#include "runtime/parallel.h"
#include "xla/ffi/api/ffi.h"

namespace dfpjax {

namespace ffi = xla::ffi;

// The error for what a handler throws, since XLA cannot propagate exceptions.
inline ffi::Error error_of(const std::exception_ptr& exception) {
  Failure failure = describe(exception);
  const auto code = [&] {
    switch (failure.kind) {
      case Failure::Kind::kOutOfMemory:
        return ffi::ErrorCode::kResourceExhausted;
      case Failure::Kind::kBadArgument:
        return ffi::ErrorCode::kInvalidArgument;
      default:
        return ffi::ErrorCode::kInternal;
    }
  }();
  return ffi::Error(code, std::move(failure.message));
}

template <auto handler>
struct Guarded;
// Every handler is registered as its Guarded<handler>::call.
template <class... Args, ffi::Error (*handler)(Args...)>
struct Guarded<handler> {
  static ffi::Error call(Args... args) noexcept {
    try {
      return handler(std::move(args)...);
    } catch (...) {
      return error_of(std::current_exception());
    }
  }
};

// For registration with XLA.
struct Handler {
  const char* name;
  XLA_FFI_Handler* execute;
  XLA_FFI_Handler* instantiate = nullptr;  // makes the state of a call site, if it has one
};
using Handlers = std::vector<Handler>;
Handlers contraction_handlers();
Handlers pass_handlers();
Handlers operand_handlers();
Handlers panel_handlers();

// A plan for operands whose shapes a program does not say, because it was exported with symbolic
// ones. `swapped` says that lhs and rhs take each other's places.
struct FoundPlan {
  bool swapped;
  std::vector<int64_t> code;
};
using Shapes = std::vector<std::vector<int64_t>>;
// Finds the plan of a contraction, given as text, for buffers of these shapes. Throws
// std::invalid_argument. Python makes it (dfpjax/operations/shaped.py), once for each combination.
std::shared_ptr<const FoundPlan> find_plan(std::string_view contraction, const Shapes& shapes);

inline std::vector<int64_t> shape_of(const ffi::AnyBuffer& buffer) {
  const auto dimensions = buffer.dimensions();
  return {dimensions.begin(), dimensions.end()};
}

// XLA's own pool; a second one would oversubscribe the machine.
class XlaExecutor : public Executor {
 public:
  XlaExecutor(ffi::ThreadPool* pool, int64_t limit)
      : pool_(pool), threads_(static_cast<int>(std::max<int64_t>(1, pool->num_threads()))) {
    if (limit > 0 && limit < threads_) threads_ = static_cast<int>(limit);
  }
  int threads() const override { return threads_; }
  void schedule(std::function<void()> task) override { pool_->Schedule(std::move(task)); }

 private:
  ffi::ThreadPool* pool_;
  int threads_;
};

// Takes the handler's arguments one by one and keeps the error of the first bad one. XLA could
// check the types itself, but its errors give only the number of an argument, not its name.
class Arguments {
 public:
  explicit Arguments(ffi::Dictionary attributes) : attributes_(attributes) {}

  template <ffi::DataType type>
  ffi::NativeType<type>* buffer(const char* name, const ffi::AnyBuffer& buffer) {
    if (buffer.element_type() == type) return buffer.typed_data<ffi::NativeType<type>>();
    std::ostringstream what;
    what << name << ": must have elements of type " << static_cast<XLA_FFI_DataType>(type)
         << ", not " << static_cast<XLA_FFI_DataType>(buffer.element_type());
    complain(what.str());
    return nullptr;
  }

  template <typename T>
  T attribute(const char* name) {
    ffi::ErrorOr<T> value = attributes_.get<T>(name);
    if (value.has_value()) return value.value();
    complain(std::string(name) + ": " +
             (attributes_.contains(name) ? value.error().message() : "is missing"));
    return T();
  }

  void complain(const std::string& what) {
    if (error_.empty()) error_ = what;
  }
  const std::string& error() const { return error_; }

 private:
  ffi::Dictionary attributes_;
  std::string error_;
};

}  // namespace dfpjax

#endif  // DFPJAX_FFI_SUPPORT_H_
