"""Right answers to the exercises in other styles than the solutions'; every check must accept them."""

# Check → answers. A notebook's import statements are at hand, and those of PRELUDE.
PRELUDE = """
import bisect, functools, itertools, math, statistics
from collections import Counter
from decimal import Decimal
from fractions import Fraction
import numpy as np
import scipy.sparse
import scipy.stats
import torch
"""

RIGHT = {
    # 01
    "check_active_weights": [
        """
def f(model, sparsity):
    total = 0
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            total += module.weight.numel()
    return total - round(sparsity * total)
""",
        """
def f(model, sparsity):
    return np.rint((1 - sparsity) * sum(p.numel() for p in model.parameters() if p.dim() > 1))
""",
        """
def f(model, sparsity):
    sizes = [p.numel() for name, p in model.named_parameters() if "bias" not in name]
    return torch.tensor((1 - sparsity) * sum(sizes), dtype=torch.float64).round()
""",
        """
def f(model, sparsity):
    sizes = [math.prod(p.shape) for name, p in model.state_dict().items() if name.endswith(".weight")]
    return Fraction(math.floor((1 - sparsity) * sum(sizes) + 0.5))
""",
        """
def f(model, sparsity):
    return np.int64(round(float(np.sum([p.numel() for p in model.parameters() if p.ndim > 1])) * (1 - sparsity)))
""",
    ],
    "check_global_prune": [
        """
def f(weights, sparsity):
    flat = np.concatenate([abs(w.numpy()).ravel() for w in weights])
    mask = np.zeros(len(flat), dtype=bool)
    mask[np.argsort(flat)[len(flat) - round((1 - sparsity) * len(flat)):]] = True
    ends = np.cumsum([w.numel() for w in weights])
    return tuple(part.reshape(w.shape) for part, w in zip(np.split(mask, ends[:-1]), weights))
""",
        """
def f(weights, sparsity):
    places = [(abs(x), i, j) for i, w in enumerate(weights) for j, x in enumerate(w.flatten().tolist())]
    places.sort(reverse=True)
    masks = [torch.zeros_like(w, dtype=torch.bool) for w in weights]
    for _, i, j in places[: round((1 - sparsity) * len(places))]:
        masks[i].view(-1)[j] = True
    return masks
""",
        """
def f(weights, sparsity):
    flat = torch.cat([w.reshape(-1) for w in weights]).square()
    rank = flat.argsort().argsort()
    keep, masks = rank >= len(flat) - round((1 - sparsity) * len(flat)), []
    for w in weights:
        masks.append(keep[: w.numel()].view_as(w))
        keep = keep[w.numel():]
    return masks
""",
        """
def f(weights, sparsity):
    flat = torch.cat([w.abs().flatten() for w in weights])
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.topk(len(flat) - round((1 - sparsity) * len(flat)), largest=False).indices] = False
    for w, part in zip(weights, kept.split([w.numel() for w in weights])):
        yield part.reshape(w.shape)
""",
    ],
    # 02
    "check_masked_linear": [
        "def f(x, weight, mask, bias):\n    return x @ (weight * mask).T + bias",
        "def f(x, weight, mask, bias):\n    return torch.einsum('bi,oi->bo', x, torch.where(mask, weight, 0.0)) + bias",
        "def f(x, weight, mask, bias):\n    return torch.addmm(bias, x, weight.masked_fill(~mask, 0).t())",
        """
def f(x, weight, mask, bias):
    rows = [(x * (w * m)).sum(dim=1) + b for w, m, b in zip(weight, mask, bias)]
    return torch.stack(rows, dim=1)
""",
        """
def f(x, weight, mask, bias):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    return torch.func.functional_call(layer, {"weight": weight * mask.to(weight.dtype), "bias": bias}, (x,))
""",
    ],
    "check_forget": [
        """
def f(optimizer, weight, mask):
    for value in optimizer.state[weight].values():
        if value.shape == weight.shape:
            value.mul_(mask)
""",
        """
def f(optimizer, weight, mask):
    for key in ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg"):
        buffer = optimizer.state[weight].get(key)
        if buffer is not None:
            buffer.masked_fill_(~mask, 0)
""",
        """
def f(optimizer, weight, mask):
    state = optimizer.state[weight]
    for key, value in list(state.items()):
        if torch.is_tensor(value) and value.dim() == weight.dim():
            state[key] = torch.where(mask, value, torch.zeros_like(value))
    return optimizer
""",
        """
def f(optimizer, weight, mask):
    removed = torch.nonzero(~mask.flatten()).flatten()
    with torch.no_grad():
        for value in optimizer.state.get(weight, {}).values():
            if value.numel() == weight.numel():
                value.view(-1).index_fill_(0, removed, 0)
""",
    ],
    # 03
    "check_prune": [
        "def f(values, count):\n    return values.abs().topk(count, largest=False).indices",
        "def f(values, count):\n    return np.argpartition(np.abs(values.numpy()), count)[:count]",
        "def f(values, count):\n    return sorted(range(len(values)), key=lambda i: abs(float(values[i])))[:count]",
        "def f(values, count):\n    return set(values.square().argsort(descending=True)[-count:].tolist())",
        "def f(values, count):\n    return tuple(values.abs().sort(stable=True).indices[:count].int().flip(0))",
    ],
    "check_erk": [
        """
def f(shapes, budget):
    sizes = np.array([math.prod(s) for s in shapes], dtype=float)
    raw = np.array([sum(s) for s in shapes], dtype=float)
    low, high = 0.0, float((sizes / raw).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * raw, sizes).sum() < budget else (low, middle)
    return np.minimum(low * raw, sizes)
""",
        """
def f(shapes, budget):
    order = sorted(range(len(shapes)), key=lambda i: Fraction(math.prod(shapes[i]), sum(shapes[i])))
    rest, demand, shares = Fraction(budget), sum(map(sum, shapes)), [None] * len(shapes)
    for i in order:
        shares[i] = min(Fraction(math.prod(shapes[i])), rest * sum(shapes[i]) / demand)
        rest, demand = rest - shares[i], demand - sum(shapes[i])
    return shares
""",
        """
def f(shapes, budget, full=frozenset()):
    free = [i for i in range(len(shapes)) if i not in full]
    rest = budget - sum(math.prod(shapes[i]) for i in full)
    scale = rest / sum(sum(shapes[i]) for i in free)
    over = {i for i in free if scale * sum(shapes[i]) > math.prod(shapes[i])}
    if over:
        return f(shapes, budget, full | over)
    return tuple(math.prod(s) if i in full else scale * sum(s) for i, s in enumerate(shapes))
""",
        """
def f(shapes, budget):
    size = torch.tensor([math.prod(s) for s in shapes], dtype=torch.float32)
    raw = torch.tensor([float(sum(s)) for s in shapes])
    full = torch.zeros(len(shapes), dtype=torch.bool)
    while True:
        share = torch.where(full, size, raw * (budget - size[full].sum()) / raw[~full].sum())
        if (share <= size).all():
            return share
        full |= share > size
""",
    ],
    "check_grow": [
        """
def f(gradient, active, count):
    score = np.abs(gradient.numpy()).ravel().copy()
    score[active.numpy()] = -np.inf
    return np.argsort(score)[::-1][:count]
""",
        """
def f(gradient, active, count):
    taken = set(active.tolist())
    free = [i for i in range(gradient.numel()) if i not in taken]
    flat = gradient.flatten().abs().tolist()
    return sorted(sorted(free, key=lambda i: -flat[i])[:count])
""",
        """
def f(gradient, active, count):
    free = torch.ones(gradient.numel(), dtype=torch.bool)
    free[active] = False
    places = free.nonzero().squeeze(1)
    return places[gradient.reshape(-1)[places].abs().topk(count).indices]
""",
        """
def f(gradient, active, count):
    score = gradient.abs().flatten().index_fill(0, active, -1)
    return set(score.sort(descending=True).indices[:count].tolist())
""",
    ],
    "check_prune_share": [
        """
def f(step, total_steps, initial, until):
    return np.float32(initial / 2) * (1 + np.cos(np.float32(np.pi * min(1, step / (until * total_steps)))))
""",
        """
def f(step, total_steps, initial, until):
    if step >= until * total_steps:
        return 0
    return initial * math.cos(math.pi / 2 * step / (until * total_steps)) ** 2
""",
        """
def f(step, total_steps, initial, until):
    progress = torch.tensor(step / (until * total_steps)).clamp(max=1)
    return initial * 0.5 * (1 + torch.cos(torch.pi * progress))
""",
        """
def f(step, total_steps, initial, until):
    end = round(until * total_steps)
    return np.where(step < end, initial * (np.cos(np.pi * step / end) + 1) / 2, 0.0)
""",
        """
def f(step, total_steps, initial, until):
    last = int(until * total_steps)
    return Fraction(0) if step >= last else Decimal(initial * (1 - math.sin(math.pi * (step / last - 0.5))) / 2)
""",
        """
def f(step, total_steps, initial, until):
    progress = np.float16(min(1.0, step / (until * total_steps)))
    return np.float16(initial) * (1 + np.cos(np.float16(np.pi) * progress)) / np.float16(2)
""",
    ],
    # 04
    "check_exploration": [
        "def f(masks):\n    return [masks[: t + 1].any(axis=0).mean() for t in range(len(masks))]",
        "def f(masks):\n    return np.maximum.accumulate(masks, axis=0).sum(axis=1) / masks.shape[1]",
        "def f(masks):\n    return torch.from_numpy(masks).long().cummax(dim=0).values.float().mean(dim=1)",
        """
def f(masks):
    seen, rates = set(), []
    for mask in masks:
        seen |= {i for i, active in enumerate(mask) if active}
        rates.append(Fraction(len(seen), len(mask)))
    return tuple(rates)
""",
        "def f(masks):\n    return (masks.cumsum(axis=0) > 0).mean(axis=1, dtype=np.float32)",
    ],
    "check_survival": [
        """
def f(masks, birth):
    born = masks[birth].copy()
    if birth:
        born &= ~masks[birth - 1]
    alive, shares = born.copy(), []
    for mask in masks[birth:]:
        alive &= mask
        shares.append(alive.sum() / born.sum())
    return shares
""",
        """
def f(masks, birth):
    before = np.zeros_like(masks[0]) if birth == 0 else masks[birth - 1]
    newborn = np.flatnonzero(masks[birth] > before)
    return np.minimum.accumulate(masks[birth:, newborn], axis=0).mean(axis=1, dtype=np.float32)
""",
        """
def f(masks, birth):
    masks = torch.from_numpy(masks)
    born = masks[birth] & ~masks[birth - 1] if birth > 0 else masks[birth]
    return masks[birth:, born].long().cumprod(dim=0).double().mean(dim=1)
""",
        """
def f(masks, birth):
    alive = {i for i in range(masks.shape[1]) if masks[birth, i] and not (birth and masks[birth - 1, i])}
    born = len(alive)
    for t in range(birth, len(masks)):
        alive = {i for i in alive if masks[t, i]}
        yield Fraction(len(alive), born)
""",
    ],
    # 05
    "check_csr": [
        """
def f(matrix):
    made = scipy.sparse.csr_matrix(matrix)
    return made.indptr, made.indices, made.data
""",
        """
def f(matrix):
    pointers, columns, values = [0], [], []
    for row in matrix:
        for column, value in enumerate(row):
            if value != 0:
                columns.append(column)
                values.append(value)
        pointers.append(len(values))
    return [pointers, columns, values]
""",
        """
def f(matrix):
    made = torch.from_numpy(matrix).to_sparse_csr()
    return made.crow_indices(), made.col_indices(), made.values()
""",
        """
def f(matrix):
    pointers = np.zeros(len(matrix) + 1)
    np.cumsum((matrix != 0).sum(axis=1), out=pointers[1:])
    return pointers, np.where(matrix)[1], matrix[matrix != 0]
""",
        """
def f(matrix):
    rows, columns = np.nonzero(matrix[:, ::-1])
    columns = matrix.shape[1] - 1 - columns
    return np.searchsorted(rows, np.arange(len(matrix) + 1)), columns, matrix[rows, columns]
""",
    ],
    "check_fair_time": [
        """
def f(call, clock, runs):
    call()
    times = [clock()]
    for _ in range(runs):
        call()
        times.append(clock())
    return np.median(np.diff(times))
""",
        """
def f(call, clock, runs):
    for _ in range(3):
        call()
    def once():
        start = clock()
        call()
        return clock() - start
    return statistics.median(once() for _ in range(runs))
""",
        """
def f(call, clock, runs):
    call()
    seconds = torch.empty(runs, dtype=torch.float64)
    for i in range(runs):
        seconds[i] = -clock()
        call()
        seconds[i] += clock()
    return seconds.median()
""",
        """
def f(call, clock, runs):
    seconds = []
    for _ in range(runs + 1):
        start = clock()
        call()
        seconds.append(clock() - start)
    return sorted(seconds[1:])[runs // 2]
""",
    ],
    # 06
    "check_break_even": [
        "def f(value_bytes, index_bytes):\n    return Fraction(value_bytes, value_bytes + index_bytes)",
        "def f(value_bytes, index_bytes):\n    return torch.tensor(value_bytes) / (value_bytes + index_bytes)",
        "def f(value_bytes, index_bytes):\n    return np.float32(1 / (1 + index_bytes / value_bytes))",
        "def f(value_bytes, index_bytes):\n    return Decimal(value_bytes) / Decimal(value_bytes + index_bytes)",
        "def f(value_bytes, index_bytes):\n    return np.float16(value_bytes) / np.float16(value_bytes + index_bytes)",
    ],
    "check_best_gain": [
        """
def f(sparsity, size, batch, peak, bandwidth):
    def seconds(operations, moved):
        return np.maximum(np.float32(operations / peak), np.float32(moved / bandwidth))
    io = 8 * size * batch
    nnz = (1 - sparsity) * size * size
    return seconds(2 * size * size * batch, 4 * size * size + io) / seconds(2 * nnz * batch, 8 * nnz + io)
""",
        """
def f(sparsity, size, batch, peak, bandwidth):
    density = Fraction(1) - Fraction(sparsity)
    weights, io = size**2, 2 * size * batch * 4
    dense = max(Fraction(2 * weights * batch) / Fraction(peak), Fraction(4 * weights + io) / Fraction(bandwidth))
    csr = max(density * 2 * weights * batch / Fraction(peak), (8 * density * weights + io) / Fraction(bandwidth))
    return dense / csr
""",
        """
def f(sparsity, size, batch, peak, bandwidth):
    each = torch.tensor([4.0, 8.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1 - sparsity], dtype=torch.float64) * size**2
    moved = (each * weights + 2 * 4 * size * batch) / bandwidth
    dense, sparse = torch.maximum(2 * weights * batch / peak, moved)
    return dense / sparse
""",
        """
def f(sparsity, size, batch, peak, bandwidth):
    times = []
    for share, entry in ((1.0, 4), (1 - sparsity, 4 + 4)):
        compute = share * size * size * batch * 2 / peak
        memory = (share * size * size * entry + size * batch * 4 + size * batch * 4) / bandwidth
        times.append(compute if compute > memory else memory)
    return np.array(times[0] / times[1])
""",
    ],
    # 07
    "check_spmm": [
        """
def f(values, columns, pointers, x):
    x = torch.as_tensor(x)
    y = torch.zeros(len(pointers) - 1, x.shape[1], dtype=x.dtype)
    for row, (start, end) in enumerate(zip(pointers, pointers[1:])):
        for value, column in zip(values[start:end], columns[start:end]):
            y[row] += float(value) * x[column]
    return y
""",
        """
def f(values, columns, pointers, x):
    return scipy.sparse.csr_matrix((values, columns, pointers), (len(pointers) - 1, len(x))) @ x
""",
        """
def f(values, columns, pointers, x):
    y = np.zeros((len(pointers) - 1, x.shape[1]))
    rows = np.repeat(np.arange(len(y)), np.diff(pointers))
    np.add.at(y, rows, values[:, None] * x[columns])
    return y
""",
        """
def f(values, columns, pointers, x):
    rows = torch.from_numpy(np.repeat(np.arange(len(pointers) - 1), np.diff(pointers)))
    products = torch.from_numpy(values)[:, None] * torch.from_numpy(np.array(x))[torch.from_numpy(columns).long()]
    return torch.zeros(len(pointers) - 1, x.shape[1], dtype=products.dtype).index_add_(0, rows, products)
""",
        """
def f(values, columns, pointers, x):
    rows = []
    for start, end in itertools.pairwise(pointers):
        total = np.zeros(x.shape[1], dtype=x.dtype)
        for k in range(start, end):
            total = total + values[k] * x[columns[k]]
        rows.append(total)
    return rows
""",
        """
def f(values, columns, pointers, x):
    matrix = torch.sparse_csr_tensor(pointers, columns, torch.from_numpy(values), (len(pointers) - 1, len(x)))
    return matrix @ torch.from_numpy(np.asarray(x))
""",
    ],
    "check_transpose": [
        "def f(rows, columns):\n    return np.lexsort((rows, columns))",
        "def f(rows, columns):\n    return sorted(range(len(rows)), key=lambda i: (columns[i], rows[i]))",
        "def f(rows, columns):\n    return torch.from_numpy(columns).argsort(stable=True)",
        "def f(rows, columns):\n    return np.argsort(columns.astype(np.int64) * (rows.max() + 1) + rows)",
        """
def f(rows, columns):
    lists = [[] for _ in range(columns.max() + 1)]
    for place, column in enumerate(columns):
        lists[column].append(place)
    return tuple(itertools.chain(*lists))
""",
    ],
    "check_weight_gradient": [
        "def f(rows, columns, x, grad_y):\n    return (grad_y[rows] * x[columns]).sum(axis=1)",
        "def f(rows, columns, x, grad_y):\n    return [grad_y[r] @ x[c] for r, c in zip(rows, columns)]",
        """
def f(rows, columns, x, grad_y):
    rows, columns = torch.as_tensor(rows), torch.as_tensor(columns)
    return (torch.as_tensor(grad_y)[rows] * torch.as_tensor(x)[columns]).sum(dim=1)
""",
        """
def f(rows, columns, x, grad_y):
    gradient = np.zeros(len(rows), dtype=np.float32)
    for b in range(x.shape[1]):
        gradient += grad_y[rows, b] * x[columns, b]
    return gradient
""",
        """
def f(rows, columns, x, grad_y):
    return [sum(float(a) * float(b) for a, b in zip(grad_y[r], x[c])) for r, c in zip(rows.tolist(), columns.tolist())]
""",
    ],
    # 08
    "check_interval": [
        """
def f(samples):
    return scipy.stats.t.interval(0.95, len(samples) - 1, np.mean(samples), scipy.stats.sem(samples))
""",
        """
def f(samples):
    mean, error = statistics.mean(samples), statistics.stdev(samples) / len(samples) ** 0.5
    half = scipy.stats.t(df=len(samples) - 1).isf(0.025) * error
    return [mean - half, mean + half]
""",
        """
def f(samples):
    samples = torch.tensor(samples, dtype=torch.float64)
    half = float(scipy.stats.t.ppf(0.975, len(samples) - 1)) * samples.std() / len(samples) ** 0.5
    return samples.mean() - half, samples.mean() + half
""",
        """
def f(samples):
    table = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}
    samples = np.array(samples)
    half = table[len(samples)] * math.sqrt(samples.var(ddof=1) / len(samples))
    return np.array([samples.mean() - half, samples.mean() + half], dtype=np.float32)
""",
    ],
    "check_growth_rule": [
        """
def f(layer, active, count, generator):
    outputs, inputs = layer.dense_shape
    taken, degree = set(active.tolist()), Counter((active % inputs).tolist())
    order = torch.randperm(outputs * inputs, generator=generator).tolist()
    free = [place for place in order if place not in taken][: 4 * count]
    return sorted(sorted(free, key=lambda place: degree[place % inputs])[:count])
""",
        """
def f(layer, active, count, generator):
    inputs, size = layer.dense_shape[1], math.prod(layer.dense_shape)
    free = np.setdiff1d(np.arange(size), active.numpy())
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    candidates = random.permutation(free)[: 4 * count]
    degree = np.bincount(active.numpy() % inputs, minlength=inputs)[candidates % inputs]
    return np.sort(candidates[np.argsort(degree)[:count]])
""",
        """
def f(layer, active, count, generator):
    outputs, inputs = layer.dense_shape
    mask = torch.zeros(outputs * inputs, dtype=torch.bool)
    mask[active] = True
    degree = mask.view(outputs, inputs).sum(dim=0).repeat(outputs).double()
    score = degree + 0.9 * torch.rand(outputs * inputs, generator=generator, dtype=torch.float64)
    score[mask] = math.inf
    return score.topk(count, largest=False).indices.sort().values.tolist()
""",
        """
def f(layer, active, count, generator):
    outputs, inputs = layer.dense_shape
    free = torch.ones(outputs * inputs, dtype=torch.bool)
    free[active] = False
    degree = torch.bincount(active % inputs, minlength=inputs)
    chosen = []
    for _ in range(count):  # a tournament of four for each place
        places = free.nonzero().squeeze(1)
        four = places[torch.randint(len(places), (4,), generator=generator)].tolist()
        best = min(four, key=lambda place: int(degree[place % inputs]))
        free[best] = False
        chosen.append(best)
    return torch.tensor(sorted(chosen))
""",
    ],
    "check_equal_width": [
        """
def f(budget, inputs, outputs):
    b = inputs + outputs
    return (math.isqrt(b * b + 4 * budget) - b) // 2
""",
        """
def f(budget, inputs, outputs):
    return max(width for width in range(3000) if width * (inputs + width + outputs) <= budget)
""",
        """
def f(budget, inputs, outputs):
    low, high = 0, budget + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle * (inputs + middle + outputs) <= budget else (low, middle)
    return torch.tensor(low)
""",
        """
def f(budget, inputs, outputs):
    roots = np.roots([1, inputs + outputs, -budget])
    return np.floor(roots.max() + 1e-9)
""",
        """
def f(budget, inputs, outputs):
    return Fraction(bisect.bisect_right(range(10_000), budget, key=lambda w: w * (inputs + w + outputs)) - 1)
""",
    ],
    # 09
    "check_row_loads": [
        "def f(rows, columns):\n    return 2 / rows + 2 / columns",
        "def f(rows, columns):\n    return Fraction(2 * (rows + columns), rows * columns)",
        """
def f(rows, columns):
    forward, inputs = columns, rows
    return np.float32(forward + inputs + (forward + inputs)) / (rows * columns)
""",
        """
def f(rows, columns):
    loads = {("x", c) for c in range(columns)} | {("gradient", r) for r in range(rows)}
    return torch.tensor(2.0 * len(loads)) / len(list(itertools.product(range(rows), range(columns))))
""",
    ],
    "check_even_blocks": [
        """
def f(grid, count, generator):
    tall, wide = grid
    down, across = (torch.randperm(n, generator=generator).tolist() for n in grid)
    chosen = set()
    for lap in range(math.gcd(tall, wide)):
        for step in range(math.lcm(tall, wide)):
            if len(chosen) < count:
                chosen.add(down[step % tall] * wide + across[(step + lap) % wide])
    return chosen
""",
        """
def f(grid, count, generator):
    tall, wide = grid
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    k = np.arange(count)
    places = np.stack([k % tall, (k + k // np.lcm(tall, wide)) % wide])
    places = np.stack([random.permutation(tall)[places[0]], random.permutation(wide)[places[1]]])
    return np.sort(places[0] * wide + places[1])
""",
        """
def f(grid, count, generator):
    tall, wide = grid
    columns = [0] * wide
    tied = torch.rand(wide, generator=generator).tolist()
    need = [count // tall + (i < count % tall) for i in range(tall)]
    need = [need[i] for i in torch.randperm(tall, generator=generator).tolist()]
    chosen = []
    for row in sorted(range(tall), key=lambda i: -need[i]):
        for column in sorted(range(wide), key=lambda j: (columns[j], tied[j]))[: need[row]]:
            columns[column] += 1
            chosen.append(row * wide + column)
    return chosen
""",
        """
def f(grid, count, generator):
    tall, wide = grid
    mask = torch.zeros(tall, wide, dtype=torch.bool)
    start = 0
    for row in range(tall):
        take = count // tall + (row < count % tall)
        mask[row, (start + torch.arange(take)) % wide] = True
        start += take
    mask = mask[torch.randperm(tall, generator=generator)][:, torch.randperm(wide, generator=generator)]
    return mask.flatten().nonzero().squeeze(1)
""",
    ],
}
