// The same autograd node for every op: a call, and how its gradient comes about.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace fvd::ops {

/// `Call` holds an op's arguments beside its tensor, and has
///   at::Tensor operator()(const at::Tensor& x) const      the op, through the dispatcher
///   at::Tensor gradient(const at::Tensor& dy) const       dx, made of ops that have gradients too
///   void save(Saved&) const, static Call load(const Saved&)
///
/// The node is there on every rank whose `x` asks for a gradient, and its backward pass is a
/// collective: all ranks ask, or none.
using Saved = ska::flat_hash_map<std::string, at::IValue>;

template <typename Call>
class Differentiable : public torch::autograd::Function<Differentiable<Call>> {
 public:
  // All that backward uses is in saved_data, so compiled autograd may trace it.
  static constexpr bool is_traceable = true;

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const Call& call) {
    call.save(context->saved_data);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    return {Call::load(context->saved_data).gradient(gradients[0]), {}};
  }
};

/// What an op does under the key Autograd.
template <typename Call>
at::Tensor differentiable(const at::Tensor& x, const Call& call) {
  if (at::GradMode::is_enabled() && x.requires_grad()) return Differentiable<Call>::apply(x, call);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call(x);
}

/// The op of a name, with the signature of its schema: SymInt where a size may be one.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace fvd::ops
