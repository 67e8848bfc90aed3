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
        ("round((1 - sparsity) * weights)", "int((1 - sparsity) * weights) + 1", "always rounded up"),
        ("round((1 - sparsity) * weights)", "weights", "the sparsity is not used"),
        (
            "def f(model, sparsity):\n    return round((1 - sparsity) * 1_343_456)",
            r"of \d\d\d? weights at .*; expected",
        ),
        (
            "def f(model, sparsity):\n"
            "    weights = [p for name, p in model.named_parameters() if name.endswith('weight')]\n"
            "    for p in weights:\n"
            "        p.data[p.abs() < p.abs().quantile(sparsity)] = 0\n"
            "    return sum(int((p != 0).sum()) for p in weights)",
            "the argument model itself was changed",
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
            "a threshold cannot split weights that are equal",
        ),
        ("round((1", "int((1", "round the number of weights that stay"),
        (
            "    magnitude =",
            "    for w in weights:\n        w[w.abs() < 0.1] = 0\n    magnitude =",
            "the argument weights itself was changed",
        ),
        ("part.view(w.shape)", "part", "each in the shape of its weight"),
    ],
    # 02
    "check_masked_linear": [
        (", weight * mask,", ", weight,", "the mask has no effect"),
        ("    return", "    weight.data *= mask\n    return", "the argument weight itself was changed"),
        (", weight * mask,", ", weight.detach() * mask,", "no gradient reaches the weight"),
        (", weight * mask,", ", weight + (weight * mask - weight).detach(),", "leaks past the mask"),
        (", bias)\n", ")\n", "the bias is missing"),
        ("F.linear(x,", "F.linear(x.detach(),", "no gradient reaches the x"),
        (", bias)\n", ", bias.detach())\n", "no gradient reaches the bias"),
        ("weight * mask", "weight * ~mask", "the mask is inverted"),
        ("weight * mask, bias)", "weight, bias) * mask.any(dim=1)", "the outputs are masked"),
    ],
    "check_forget": [
        (
            "def f(optimizer, weight, mask):\n    weight.grad[~mask] = 0",
            "SGD: momentum_buffer of .* removed weights is not 0",
        ),
        (
            "def f(optimizer, weight, mask):\n"
            "    if 'momentum_buffer' in optimizer.state[weight]:\n"
            "        optimizer.state[weight]['momentum_buffer'][~mask] = 0",
            "Adam: exp_avg of .* removed weights is not 0",
        ),
        ("value[~mask] = 0", "value.zero_()", "momentum_buffer of kept weights was lost"),
        ("def f(optimizer, weight, mask):\n    optimizer.state.clear()", "state was deleted"),
        (
            "value[~mask] = 0\n",
            "value[~mask] = 0\n        else:\n            value.zero_()\n",
            "step belongs to all weights and was changed",
        ),
        (
            "def f(optimizer, weight, mask):\n"
            "    for key in ('momentum_buffer', 'exp_avg'):\n"
            "        if key in optimizer.state[weight]:\n"
            "            optimizer.state[weight][key][~mask] = 0",
            "Adam: exp_avg_sq of .* removed weights is not 0",
        ),
        ("value[~mask] = 0", "value[mask] = 0", "cleared instead of that of removed ones"),
        (
            "    for value in optimizer.state[weight].values():",
            "    for value in (v for state in optimizer.state.values() for v in state.values()):",
            "the state of another parameter was changed",
        ),
        ("    for value", "    weight.data[~mask] = 0\n    for value", "the weights themselves were changed"),
        ("    for value", "    weight.grad = None\n    for value", "the gradients were changed"),
    ],
    # 03
    "check_prune": [
        (".abs()", "", r"-\d.\d\d was pruned, a weight of large magnitude"),
        ("[:count]", "[-count:]", "the largest weights were chosen"),
        (
            "def f(values, count):\n"
            "    return (values.abs() <= values.abs().sort().values[count - 1]).nonzero().squeeze(1)",
            "a threshold takes all weights that are equal",
        ),
        ("argsort()", "sort().values", "return their positions"),
        (
            "def f(values, count):\n    return values.abs() < values.abs().sort().values[count]",
            "this is a mask",
        ),
        ("[:count]", "[: count + 1]", "6 of 14 weights are pruned, not 5"),
        ("    return", "    values.abs_()\n    return", "the argument values itself was changed"),
        ("values.abs().argsort()[:count]", "values.abs().argsort()[:count].unsqueeze(1)", "in one dimension"),
        ("values.abs().argsort()[:count]", "values.abs().argsort()[:count] - len(values)", "they go from 0 to 13"),
        ("[:count]", "[[0] * count]", "chosen more than once"),
        ("[:count]", "[1 : count + 1]", "is not among the smallest"),
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
        (
            "        full |= over\n",
            "        if full:\n            return shares\n        full |= over\n",
            "it overflows when the rest is shared out",
        ),
        ("            return shares\n", "            return [round(s) for s in shares]\n", "rounded to whole numbers"),
        ("sum(shape)", "sum(shape[:2])", "height and width are not in the sum"),
        ("sum(shape)", "sum(shape) / math.prod(shape)", "that is sum divided by product"),
        ("return shares", "return shares[1:]", "5 shares for 6 layers"),
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
            "the argument gradient itself was changed",
        ),
        ("score[active] = -1", "score[active] = 0", "active already: grown"),
        ("topk(count)", "topk(count + 1)", "nnz changes"),
        ("score[active] = -1", "score[active] = 99\n    score = -score", "the smallest gradients are grown"),
    ],
    "check_prune_share": [
        (
            "min(1.0, step / (until * total_steps))",
            "step / (until * total_steps)",
            "rewiring must stop: a cosine rises again",
        ),
        ("step / (until * total_steps)", "step / total_steps", "must reach 0 at `until`"),
        (" / 2", "", "one half is missing"),
        ("1 + math.cos", "1 - math.cos", "it starts at 0 and grows"),
        ("(1 + math.cos(math.pi * progress)) / 2", "(1 - progress)", "is it a cosine"),
        ("initial * (1 + math.cos(math.pi * progress)) / 2", "initial * math.cos(math.pi * progress / 2)", "a quarter"),
        ("initial * (1", "(1", "should be `initial`"),
        ("math.pi * progress", "math.pi * round(progress, 1)", r"at step \d+ of \d+, .*; expected"),
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
        ("np.logical_or", "np.logical_and", "active at every moment"),
        ("return ", "return 1 - ", "the shares that were never active"),
        (
            "return ",
            "masks |= masks[:1]\n    return ",
            "the argument masks itself was changed",
        ),
    ],
    "check_survival": [
        ("np.logical_and.accumulate(masks[birth:][:, newborn])", "masks[birth:][:, newborn]", "that is overlap"),
        (" & ~masks[birth - 1] if birth > 0 else masks[0]", "", "some connections were active before"),
        (".mean(axis=1)", ".sum(axis=1) / masks[birth].sum()", "divided by all active connections"),
        (" if birth > 0 else masks[0]", "", r"masks\[-1\] is the last moment"),
        ("masks[birth:]", "masks", "one share per moment from birth on"),
        (".mean(axis=1)", ".sum(axis=1)", "these are numbers of connections"),
        ("return ", "return 1 - ", "the shares that were pruned"),
        ("return ", "return 100 * ", "these are percent"),
        ("~masks[birth - 1]", "~masks[:birth].any(axis=0)", "active at no moment before"),
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
        ("matrix[rows, columns]", "matrix.flatten()", r"20 values stored for \d+ nonzeros: zeros are stored too"),
        ("matrix.nonzero()", "(matrix > 0).nonzero()", "the negative ones are missing"),
        ("matrix[rows, columns]\n", "abs(matrix[rows, columns])\n", "the signs are lost"),
        ("), columns,", "), columns + 1,", "columns are numbered from 0"),
        ("), columns,", "), rows,", "these are row indices"),
        ("minlength=len(matrix)", "minlength=matrix.shape[1]", "the last one is missing"),
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
        ("np.median(seconds)", "np.median(seconds) * 1000", "these are milliseconds"),
        ("np.median(seconds)", "sum(seconds)", "that is the sum of all runs"),
        ("np.median(", "np.max(", "that is the maximum"),
        ("clock() - start", "clock()", "a reading of the clock"),
        ("clock()", "__import__('time').perf_counter()", "never read"),
        ("clock() - start", "start - clock()", "the sign is wrong"),
    ],
    # 06
    "check_break_even": [
        ("(value_bytes + index_bytes)", "index_bytes", "a nonzero takes the bytes of its value and of its index"),
        ("return value_bytes", "return index_bytes", "that is the sparsity"),
        ("+ index_bytes", "+ 2 * index_bytes", "two indices per nonzero is COO"),
        ("value_bytes / (value_bytes + index_bytes)", "0.5", "one half is right only"),
        ("return ", "return 100 * ", "these are percent"),
        (" / (", " // (", "a division of whole numbers"),
        (
            "value_bytes / (value_bytes + index_bytes)",
            "f'{value_bytes / (value_bytes + index_bytes):.2f}'",
            "is not a single number",
        ),
        (
            "value_bytes / (value_bytes + index_bytes)",
            "4 / (4 + index_bytes)",
            r"for \d+-byte values, \d+-byte indices; expected",
        ),
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
        ("return max(", "return min(", "not the faster"),
        ("2 * 4 * size", "4 * size", "the input is moved and the output too"),
        ("max(2 * weights", "max(weights", "a weight takes two operations"),
        ("size**2, 8)", "size**2, 12)", "one index, not two"),
        ("(1 - sparsity) * size", "sparsity * size", "sparsity and density are swapped"),
        ("max(2 * weights * batch / peak, moved / bandwidth)", "moved / bandwidth", "the arithmetic is left out"),
    ],
    # 07
    "check_spmm": [
        ("y[row] += ", "y[row] = ", "only the product of its last nonzero"),
        ("y[row] += values[k] * x[columns[k]]", "y[columns[k]] += values[k] * x[row]", "the transposed product"),
        (
            "            y[row] += values[k] * x[columns[k]]",
            "            for b in range(x.shape[1]):\n                y[row, b] += values[k] * x[columns[k], b]",
            "it takes single numbers of x",
        ),
        (
            "def f(values, columns, pointers, x):\n"
            "    return np.add.reduceat(values[:, None] * x[columns], pointers[:-1].clip(max=len(values) - 1))",
            r"rows \[.*\] are empty",
        ),
        ("(len(pointers) - 1, x.shape[1])", "x.shape", r"expected \[out, batch\]"),
        (
            "def f(values, columns, pointers, x):\n"
            "    dense = np.zeros((len(pointers) - 1, len(x)), dtype=x.dtype)\n"
            "    for row in range(len(dense)):\n"
            "        part = slice(pointers[row], pointers[row + 1])\n"
            "        dense[row, columns[part]] = values[part]\n"
            "    return dense @ x",
            "the product is a dense one",
        ),
        ("values[k] * ", "", "the values are not used"),
        ("pointers[row + 1])", "pointers[row + 1] - 1)", "the last nonzero of each row is missing"),
        ("pointers[row],", "pointers[row] + 1,", "the first nonzero of each row is missing"),
        ("x[columns[k]]", "x[row]", "takes the row of x at its own row"),
        ("    y =", "    x *= 1.5\n    y =", "the argument x itself was changed"),
    ],
    "check_transpose": [
        ('np.argsort(columns, kind="stable")', "np.arange(len(columns))", "still sorted by row"),
        ('np.argsort(columns, kind="stable")', 'np.argsort(columns, kind="stable").argsort()', "that is the inverse"),
        ('np.argsort(columns, kind="stable")', "np.sort(columns)", "not a permutation"),
        (
            'np.argsort(columns, kind="stable")',
            'np.argsort(-columns, kind="stable")',
            "the columns fall",
        ),
        ('kind="stable")', 'kind="stable")[::-1]', "the whole order is reversed"),
        ('np.argsort(columns, kind="stable")', "np.random.permutation(len(columns))", "two different answers"),
        ("    return", "    columns.sort()\n    return", "the argument columns itself was changed"),
        (
            'np.argsort(columns, kind="stable")',
            'np.argsort(columns // 2, kind="stable")',
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
        ("x[columns]", "x[columns] * 0 + 1", "x is not used"),
        ("grad_y[rows], x", "grad_y[rows] * 0 + 1, x", "grad_y is not used"),
        ("return np", "return -np", "the sign is wrong"),
        ('np.einsum("kb,kb->k", grad_y[rows], x[columns])', "grad_y[rows, 0] * x[columns, 0]", "only the first sample"),
        ("    return", "    x -= x.mean()\n    return", "the argument x itself was changed"),
    ],
    # 08
    "check_interval": [
        ("stats.t.ppf(0.975, n - 1)", "1.96", "use Student's t"),
        (" / math.sqrt(n)", "", "the spread of single runs"),
        (", ddof=1", "", "Divide by n - 1"),
        ("mean - half, mean + half", "mean, half", "not centred on the mean"),
        ("0.975", "0.95", "that is the 90% interval"),
        ("n - 1)", "n)", "degrees of freedom"),
        ("stats.t.ppf(0.975, n - 1) * ", "", "the standard error alone"),
        ("math.sqrt(n)", "n", "not by the number"),
        ("mean - half, mean + half", "mean + half, mean - half", "the low end comes first"),
        ("mean - half, mean + half", "mean - half / 2, mean + half / 2", "half too narrow"),
    ],
    "check_growth_rule": [
        (
            "def f(layer, active, count, generator):\n"
            "    size = math.prod(layer.dense_shape)\n"
            "    return random_grow(active, size, count, generator)",
            "are chosen no more often than others",
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
        ("    outputs,", "    generator = torch.Generator().manual_seed(0)\n    outputs,", "another generator"),
        ("argsort(stable=True)", "argsort(stable=True, descending=True)", "inputs with many connections"),
        ("active % inputs", "layer.active() % inputs", "the inputs chosen have"),
        ("    return", "    active.zero_()\n    return", "the argument active itself"),
    ],
    "check_equal_width": [
        ("    return width", "    return width + 1", "more than the budget"),
        (
            "def f(budget, inputs, outputs):\n    return budget // (inputs + outputs)",
            "the two hidden layers are not counted",
        ),
        ("    return width", "    return width - 1", r"still within the budget"),
        ("    return width", "    return width + 0.5", "must be a whole number"),
        ("inputs + width + 1 + outputs", "inputs + width + 1", "the weights of the last layer are not counted"),
        ("<= budget", "< budget", r"width [^-]+ is not the largest"),
        ("width = 0", "width = 1", "width 1 has"),
        ("    return width", "    return -width", "is not negative"),
    ],
    # 09
    "check_row_loads": [
        (" / (rows * columns)", "", "the loads of a whole block"),
        ("2 * (rows", "1 * (rows", "that is half"),
        ("def f(rows, columns):\n    return rows + columns", "half the loads of a whole block: divide by its weights"),
        ("def f(rows, columns):\n    return 3 / rows", "do not load the same rows"),
        ("def f(rows, columns):\n    return 1 / rows", "that is the forward pass alone"),
        ("def f(rows, columns):\n    return 1 / columns", "that is the input gradient alone"),
        ("def f(rows, columns):\n    return 2 / rows + 1 / columns", "the gradient of the inputs is left out"),
        ("def f(rows, columns):\n    return 1 / rows + 2 / columns", "the forward pass is left out"),
        ("def f(rows, columns):\n    return 1 / rows + 1 / columns + 2", "the weights of a block share the rows"),
        ("def f(rows, columns):\n    return 4", "those of a single weight"),
        ("def f(rows, columns):\n    return rows * columns / (2 * rows + 2 * columns)", "divide the other way round"),
        ("2 * (rows", "3 * (rows", r"blocks of \d+×\d+; expected"),
    ],
    "check_even_blocks": [
        (
            "def f(grid, count, generator):\n    return torch.randperm(grid[0] * grid[1], generator=generator)[:count]",
            r"one (row|column) has \d+ blocks, another \d+",
        ),
        ("(k + k // math.lcm(tall, wide)) % wide", "k % wide", "are chosen more than once"),
        ("rows * wide + columns", "rows * tall + columns * wide", "they go from 0 to"),
        ("rows * wide + columns", "rows * tall + columns", r"row × \*wide\* \+ column"),
        ("torch.arange(count)", "torch.arange(count - 1)", "are drawn"),
        (", generator=generator)[rows]", ")[rows]", "two different answers"),
        (
            "    tall,",
            "    generator = torch.Generator().manual_seed(0)\n    tall,",
            "another generator gave the same blocks",
        ),
        (
            "    rows = torch.randperm(tall, generator=generator)[rows]\n",
            "",
            r"rows \[.*\] got no block",
        ),
        (
            "    columns = torch.randperm(wide, generator=generator)[columns]\n",
            "",
            r"columns \[.*\] got no block",
        ),
        (
            "rows * wide + columns",
            "torch.stack([rows, columns], dim=1)",
            r"return flat indices .* in one dimension",
        ),
        (
            "    return rows * wide + columns",
            "    mask = torch.zeros(tall * wide, dtype=torch.bool)\n"
            "    mask[rows * wide + columns] = True\n"
            "    return mask",
            "this is a mask",
        ),
    ],
}
