#include "runtime/failure.h"

#include <new>
#include <stdexcept>

#include "runtime/scratch.h"

namespace dfpjax {

Failure describe(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const OutOfScratch& e) {
    return {Failure::Kind::kOutOfMemory, e.what()};
  } catch (const std::bad_alloc&) {
    return {Failure::Kind::kOutOfMemory, "out of memory"};
  } catch (const std::invalid_argument& e) {
    return {Failure::Kind::kBadArgument, e.what()};
  } catch (const std::exception& e) {
    return {Failure::Kind::kInternal, e.what()};
  } catch (...) {
    return {Failure::Kind::kInternal, "an exception of unknown type"};
  }
}

}  // namespace dfpjax
