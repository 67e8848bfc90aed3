"""Plausible wrong answers to the exercises, and the symptom that the check must report for each."""

# Check → cases: either (text in the solution, its replacement, symptom) or (the whole answer, symptom).
WRONG = {
    # 01
    "check_active_weights": [
        (' if name.endswith("weight")', "", "biases are counted"),
        ("round(", "int(", "a fraction was cut off"),
        ("(1 - sparsity)", "sparsity", "the number of removed weights"),
        ("round((1 - sparsity) * weights)", "(1 - sparsity) * weights", "not a whole number"),
        (
            "def f(model, sparsity):\n"
            "    return sum(round((1 - sparsity) * p.numel()) for p in model.parameters() if p.dim() > 1)",
            "rounded in each layer",
        ),
    ],
    "check_global_prune": [
        (
            "def f(weights, sparsity):\n"
            "    return [w.abs() > w.abs().flatten().sort().values[round(sparsity * w.numel()) - 1] for w in weights]",
            "rank all layers together",
        ),
        ("w.abs().flatten()", "w.flatten()", "rank by magnitude, not by value"),
        (").indices]", ", largest=False).indices]", "the weights of smallest magnitude are kept"),
        ("round((1 - sparsity)", "round(sparsity", "the mask is True where a weight is removed"),
        (
            "def f(weights, sparsity):\n"
            "    magnitude = torch.cat([w.abs().flatten() for w in weights]).sort().values\n"
            "    threshold = magnitude[round(sparsity * len(magnitude))]\n"
            "    return [w.abs() >= threshold for w in weights]",
            "cannot split ties",
        ),
    ],
    # 02
    "check_masked_linear": [
        (", weight * mask,", ", weight,", "the mask has no effect"),
        ("    return", "    weight.data *= mask\n    return", "the stored weight has changed"),
        (", weight * mask,", ", weight.detach() * mask,", "no gradient reaches the weight"),
        (", weight * mask,", ", weight + (weight * mask - weight).detach(),", "leaks past the mask"),
        (", bias)\n", ")\n", "the bias is missing"),
    ],
    "check_forget": [
        (
            "def f(optimizer, weight, mask):\n    weight.grad[~mask] = 0",
            "SGD: 3 steps later a removed weight has drifted",
        ),
        (
            "def f(optimizer, weight, mask):\n"
            "    if 'momentum_buffer' in optimizer.state[weight]:\n"
            "        optimizer.state[weight]['momentum_buffer'][~mask] = 0",
            "Adam: 3 steps later a removed weight has drifted",
        ),
        ("value[~mask] = 0", "value.zero_()", "momentum_buffer of kept weights was lost"),
        ("def f(optimizer, weight, mask):\n    optimizer.state.clear()", "state was deleted"),
        (
            "value[~mask] = 0\n",
            "value[~mask] = 0\n        else:\n            value.zero_()\n",
            "step belongs to all weights and was changed",
        ),
    ],
    # 03
    "check_prune": [
        (".abs()", "", "-3.0 was pruned"),
        ("[:count]", "[-count:]", "the largest weights were chosen"),
        (
            "def f(values, count):\n"
            "    return (values.abs() <= values.abs().sort().values[count - 1]).nonzero().squeeze(1)",
            "a threshold takes all ties",
        ),
        ("argsort()", "sort().values", "return their positions"),
        (
            "def f(values, count):\n    return values.abs() < values.abs().sort().values[count]",
            "this is a mask",
        ),
    ],
    "check_erk": [
        ("        full |= over\n", "        return shares\n", "cap it and distribute the rest"),
        (
            "        full |= over\n",
            "        return [min(a, b) for a, b in zip(shares, sizes)]\n",
            "distribute the excess of full layers",
        ),
        (
            "            return shares\n",
            "            return [share / size for share, size in zip(shares, sizes)]\n",
            "these are densities",
        ),
        (
            "sum(shape)",
            "(shape[0] + shape[1]) * math.prod(shape[2:])",
            "that is ER",
        ),
        ("sum(shape)", "math.prod(shape)", "that is the uniform scheme"),
    ],
    "check_grow": [
        ("    score[active] = -1\n", "", "are active already: grown and active must be disjoint"),
        ("gradient.abs()", "gradient.clone()", "rank gradients by magnitude"),
        (".indices", ".values", "these are values of gradients"),
        (
            "def f(gradient, active, count):\n"
            "    score = gradient.abs().flatten()\n"
            "    free = torch.ones(len(score), dtype=torch.bool)\n"
            "    free[active] = False\n"
            "    return score[free].topk(count).indices",
            "translate them to flat indices",
        ),
        (
            "    score = gradient.abs().flatten()\n",
            "    gradient.view(-1)[active] = 0\n    score = gradient.abs().flatten()\n",
            "the gradient itself was changed",
        ),
    ],
    "check_prune_share": [
        ("min(1.0, step / (until * total_steps))", "step / (until * total_steps)", "rewiring must stop"),
        ("step / (until * total_steps)", "step / total_steps", "must reach 0 at `until`"),
        (" / 2", "", "one half is missing"),
        ("1 + math.cos", "1 - math.cos", "it starts at 0 and grows"),
        ("(1 + math.cos(math.pi * progress)) / 2", "(1 - progress)", "is it a cosine"),
    ],
    # 04
    "check_exploration": [
        ("np.logical_or.accumulate(masks)", "masks", "the density of each moment"),
        (".mean(axis=1)", ".sum(axis=1) / masks[0].sum()", "divided by the number of active connections"),
        ("np.logical_or.accumulate(masks)", "masks.cumsum(axis=0)", "grow back are counted twice"),
        (".mean(axis=1)", ".sum(axis=1)", "these are numbers of connections"),
        ("return ", "return 100 * ", "these are percent"),
        (
            "np.logical_or.accumulate(masks).mean(axis=1)",
            "np.array([masks.any(axis=0).mean()])",
            "one rate per moment",
        ),
    ],
    "check_survival": [
        ("np.logical_and.accumulate(masks[birth:][:, newborn])", "masks[birth:][:, newborn]", "that is overlap"),
        (" & ~masks[birth - 1] if birth > 0 else masks[0]", "", "connection 0 was active before"),
        (".mean(axis=1)", ".sum(axis=1) / masks[birth].sum()", "divided by all active connections"),
        (" if birth > 0 else masks[0]", "", r"masks\[-1\] is the last moment"),
        ("masks[birth:]", "masks", "one share per moment from birth on"),
    ],
    # 05
    "check_csr": [
        ("np.concatenate([[0], lengths.cumsum()])", "lengths.cumsum()", "the leading 0 is missing"),
        ("np.concatenate([[0], lengths.cumsum()])", "lengths", "these are the lengths of the rows"),
        ("np.concatenate([[0], lengths.cumsum()])", "rows", "these are the row indices of COO"),
        (
            "np.bincount(rows, minlength=len(matrix))",
            "np.unique(rows, return_counts=True)[1]",
            "an empty row has a pointer too",
        ),
        (
            "    rows, columns = matrix.nonzero()",
            "    columns, rows = matrix.T.nonzero()",
            "that is CSC",
        ),
        ("matrix[rows, columns]", "matrix.flatten()", "20 values stored for 5 nonzeros"),
    ],
    "check_fair_time": [
        ("    call()\n    seconds", "    seconds", "the cold first call is part of"),
        ("np.median(", "np.mean(", "that is the mean"),
        ("np.median(", "np.min(", "that is the minimum"),
        (
            "def f(call, clock, runs):\n"
            "    call()\n"
            "    start = clock()\n"
            "    for _ in range(runs):\n"
            "        call()\n"
            "    return (clock() - start) / runs",
            "time every call",
        ),
    ],
    # 06
    "check_break_even": [
        ("(value_bytes + index_bytes)", "index_bytes", "bytes of its value and of its index"),
        ("return value_bytes", "return index_bytes", "that is the sparsity"),
        ("+ index_bytes", "+ 2 * index_bytes", "two indices per nonzero is COO"),
        ("value_bytes / (value_bytes + index_bytes)", "0.5", "one half is right only"),
    ],
    "check_best_gain": [
        (
            "return seconds(size**2, 4) / seconds((1 - sparsity) * size**2, 8)",
            "return seconds((1 - sparsity) * size**2, 8) / seconds(size**2, 4)",
            "not the other way round",
        ),
        (
            "max(2 * weights * batch / peak, moved / bandwidth)",
            "2 * weights * batch / peak + moved / bandwidth",
            "take the slower one, not their sum",
        ),
        ("size**2, 8)", "size**2, 4)", "8 bytes, not 4"),
        (" + 2 * 4 * size * batch", "", "input and output are moved through memory"),
        (
            "max(2 * weights * batch / peak, moved / bandwidth)",
            "2 * weights * batch / peak",
            "the memory traffic is left out",
        ),
    ],
    # 07
    "check_spmm": [
        ("y[row] += ", "y[row] = ", "only the product of its last nonzero"),
        ("y[row] += values[k] * x[columns[k]]", "y[columns[k]] += values[k] * x[row]", "the transposed product"),
        (
            "            y[row] += values[k] * x[columns[k]]",
            "            for b in range(x.shape[1]):\n                y[row, b] += values[k] * x[columns[k], b]",
            "one number at a time",
        ),
        (
            "def f(values, columns, pointers, x):\n"
            "    return np.add.reduceat(values[:, None] * x[columns], pointers[:-1].clip(max=len(values) - 1))",
            "row 1 is empty",
        ),
    ],
    "check_transpose": [
        ('np.argsort(columns, kind="stable")', "np.arange(len(columns))", "still sorted by row"),
        ('np.argsort(columns, kind="stable")', 'np.argsort(columns, kind="stable").argsort()', "that is the inverse"),
        ('np.argsort(columns, kind="stable")', "np.sort(columns)", "not a permutation"),
        (
            'np.argsort(columns, kind="stable")',
            'np.argsort(-columns, kind="stable")',
            "the columns are not in increasing order",
        ),
        (
            'np.argsort(columns, kind="stable")',
            "np.lexsort((-rows, columns))",
            "the rows within a column are not in increasing order",
        ),
    ],
    "check_weight_gradient": [
        (
            'np.einsum("kb,kb->k", grad_y[rows], x[columns])',
            "(grad_y @ x.T)[rows, columns]",
            "a dense gradient .* was built",
        ),
        ("return np.einsum(", "return 1 / x.shape[1] * np.einsum(", "a mean over the batch"),
        ("grad_y[rows], x[columns]", "grad_y[columns], x[rows]", "rows and columns are swapped"),
        ('"kb,kb->k"', '"kb,kb->kb"', "one number per nonzero"),
    ],
    # 08
    "check_interval": [
        ("stats.t.ppf(0.975, n - 1)", "1.96", "use Student's t"),
        (" / math.sqrt(n)", "", "the spread of single runs"),
        (", ddof=1", "", "Divide by n - 1"),
        ("mean - half, mean + half", "mean, half", "not centred on the mean"),
    ],
    "check_growth_rule": [
        (
            "def f(layer, active, count, generator):\n"
            "    size = math.prod(layer.dense_shape)\n"
            "    return random_grow(active, size, count, generator)",
            "chosen no more often than others",
        ),
        (".sort().values", "", "not sorted"),
        ("[:count]", "", "nnz changes"),
        (
            "    candidates = random_grow(active, size, min(4 * count, size - len(active)), generator)",
            "    candidates = torch.randperm(size, generator=generator)[: 4 * count]",
            "are active already",
        ),
        (
            "fan_out[candidates % inputs].argsort(stable=True)",
            "torch.randperm(len(candidates))",
            "two different answers",
        ),
        (
            "    fan_out = torch.bincount(active % inputs, minlength=inputs)\n"
            "    order = fan_out[candidates % inputs].argsort(stable=True)",
            "    fan_in = torch.bincount(active // inputs, minlength=outputs)\n"
            "    order = fan_in[candidates // inputs].argsort(stable=True)",
            "it prefers outputs with few connections",
        ),
    ],
    "check_equal_width": [
        ("    return width", "    return width + 1", "more than the budget"),
        (
            "def f(budget, inputs, outputs):\n    return budget // (inputs + outputs)",
            "the two hidden layers are not counted",
        ),
        ("    return width", "    return width - 1", "is not the largest"),
        ("    return width", "    return width + 0.5", "must be a whole number"),
    ],
}
