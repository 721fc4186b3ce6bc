// The plans that Python makes for calls whose shapes their program does not say.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ffi/support.h"

namespace nb = nanobind;

namespace dfpjax {
namespace {

constexpr size_t kMostPlans = 4096;  // as Python keeps of them

FoundPlan make_plan(std::string_view contraction, const Shapes& shapes) {
  const nb::gil_scoped_acquire held;
  try {
    const nb::object make = nb::module_::import_("dfpjax.operations.shaped").attr("plan_for");
    const nb::tuple made = nb::cast<nb::tuple>(make(contraction, shapes));
    return {nb::cast<bool>(made[0]), nb::cast<std::vector<int64_t>>(made[1])};
  } catch (const std::exception& error) {  // while the interpreter is held, as Python's need
    throw std::invalid_argument(std::string("contraction: ") + error.what());
  }
}

}  // namespace

std::shared_ptr<const FoundPlan> find_plan(std::string_view contraction, const Shapes& shapes) {
  using Key = std::pair<std::string, Shapes>;
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const FoundPlan>> plans;
  Key key(contraction, shapes);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
  }
  // Not under the lock, since Python may hold its own.
  auto plan = std::make_shared<const FoundPlan>(make_plan(contraction, shapes));
  const std::lock_guard<std::mutex> lock(mutex);
  if (plans.size() >= kMostPlans) plans.clear();
  plans.emplace(std::move(key), plan);
  return plan;
}

}  // namespace dfpjax
