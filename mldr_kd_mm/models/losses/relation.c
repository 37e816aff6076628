/* Compute _linear() of relation.py one row at a time, in double. The formulas are in relation.py.
 *
 * setup.py builds this file if there is a C compiler; otherwise relation.py runs without it.
 */

#include <math.h>
#include <string.h>

typedef double vec __attribute__((vector_size(4 * sizeof(double))));
/* Run enough independent recurrences at a time to hide the latency of one. */
#define VECS 4
#define BLOCK (4 * VECS)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* Compile one version for each target; the right one is chosen when the library is loaded. */
#define FOR_EACH_PROCESSOR __attribute__((target_clones("fma", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

/* sums_n = sum over i of T_n(x_i) weight_i, for n < degree. */
INLINE void analyse(
    const double *x, const double *weight, double *sums, long length, long degree, vec *lanes)
{
    memset(lanes, 0, degree * sizeof(vec));
    for (long i = 0; i < length; i += BLOCK) {
        vec twice[VECS], before[VECS], now[VECS];
        memcpy(twice, x + i, sizeof twice);
        memcpy(now, weight + i, sizeof now);
        for (int b = 0; b < VECS; b++) {
            before[b] = twice[b] * now[b]; /* T_-1 is T_1 */
            twice[b] += twice[b];
        }
        for (long n = 0; n < degree; n++) {
            lanes[n] += (now[0] + now[1]) + (now[2] + now[3]);
            for (int b = 0; b < VECS; b++) {
                vec next = twice[b] * now[b] - before[b];
                before[b] = now[b];
                now[b] = next;
            }
        }
    }
    for (long n = 0; n < degree; n++)
        sums[n] = (lanes[n][0] + lanes[n][1]) + (lanes[n][2] + lanes[n][3]);
}

/* out_i = sum over n < degree of c_n T_n(x_i), by Clenshaw's recurrence. */
INLINE void synthesise(const double *x, const double *c, double *out, long length, long degree)
{
    for (long i = 0; i < length; i += BLOCK) {
        vec half[VECS], twice[VECS], before[VECS], now[VECS];
        memcpy(half, x + i, sizeof half);
        memset(before, 0, sizeof before);
        memset(now, 0, sizeof now);
        for (int b = 0; b < VECS; b++)
            twice[b] = half[b] + half[b];
        for (long n = degree - 1; n > 0; n--)
            for (int b = 0; b < VECS; b++) {
                vec next = twice[b] * now[b] + (c[n] - before[b]);
                before[b] = now[b];
                now[b] = next;
            }
        for (int b = 0; b < VECS; b++)
            now[b] = half[b] * now[b] + (c[0] - before[b]);
        memcpy(out + i, now, sizeof now);
    }
}

/* out_k = sum over n of (sign)^n sums_n coefficients_nk, for the rates of this sign. */
INLINE void to_rates(
    const double *sums, const double *coefficients, double sign, double *out, long degree)
{
    double factor = 1;
    memset(out, 0, degree * sizeof(double));
    for (long n = 0; n < degree; n++, factor *= sign)
        for (long k = 0; k < degree; k++)
            out[k] += factor * sums[n] * coefficients[n * degree + k];
}

/* out_n += (sign)^n sum over k of coefficients_nk sums_k. */
INLINE void from_rates(
    const double *sums, const double *coefficients, double sign, double *out, long degree)
{
    double factor = 1;
    for (long n = 0; n < degree; n++, factor *= sign) {
        double sum = 0;
        for (long k = 0; k < degree; k++)
            sum += coefficients[n * degree + k] * sums[k];
        out[n] += factor * sum;
    }
}

/* For each row x (length) and its vectors v_k: lse = sum over j of log sum over i of exp(scale x_i x_j);
 * energy_k = v_k' P v_k; both_k = (P + P') v_k, with P_ij the softmax over i of scale x_i x_j.
 *
 * x (rows, length); vectors, both (rows, count, length); coefficients (degree, degree), for rates up
 * to reach; lse (rows); energy (rows, count); work (7 (length + 2 BLOCK + degree)). */
FOR_EACH_PROCESSOR
void relation_rows(
    const double *x, const double *vectors, const double *coefficients, double scale, double reach,
    long rows, long length, long count, long degree,
    double *lse, double *energy, double *both, double *work)
{
    long most = length + 2 * BLOCK;
    vec *lanes = (vec *)work;
    double *sums = work + 4 * degree, *rates = sums + degree, *back = rates + degree;
    double *position = back + degree, *rate = position + most, *normalizer = rate + most;
    double *v = normalizer + most, *forward = v + most, *value = forward + most;
    long *place = (long *)(value + most); /* position of each entry of the row after sorting */

    for (long row = 0; row < rows; row++, x += length) {
        double low = x[0], high = x[0];
        long positives = 0;
        for (long i = 1; i < length; i++) {
            low = x[i] < low ? x[i] : low;
            high = x[i] > high ? x[i] : high;
        }
        for (long i = 0; i < length; i++)
            positives += x[i] >= 0;
        /* Sort the entries by sign, since each sign has its own coefficients. */
        long start[2] = {0, (positives + BLOCK - 1) / BLOCK * BLOCK};
        long end = start[1] + (length - positives + BLOCK - 1) / BLOCK * BLOCK;
        long next[2] = {start[0], start[1]};
        double half = (high - low) / 2, middle = (high + low) / 2, total = 0, peaks = 0;
        double shrink = half > 0 ? 1 / half : 0;
        for (long i = 0; i < end; i++)
            position[i] = 0, rate[i] = -1;
        for (long i = 0; i < length; i++) {
            long at = next[x[i] < 0]++;
            place[i] = at;
            position[at] = (x[i] - middle) * shrink;
            rate[at] = 2 * scale * fabs(x[i]) * half / reach - 1;
            peaks += scale * x[i] * (x[i] < 0 ? low : high);
        }
        for (long k = -1; k < count; k++) {
            const double *from = k < 0 ? 0 : vectors + k * length;
            double form = 0;
            memset(v, 0, end * sizeof(double));
            for (long i = 0; i < length; i++)
                v[place[i]] = from ? from[i] : 1;
            analyse(position, v, sums, end, degree, lanes);
            double *out = k < 0 ? normalizer : forward;
            for (int s = 0; s < 2; s++) {
                long size = (s ? end : start[1]) - start[s];
                to_rates(sums, coefficients, s ? -1 : 1, rates, degree);
                synthesise(rate + start[s], rates, out + start[s], size, degree);
            }
            if (k < 0)
                continue;
            memset(back, 0, degree * sizeof(double));
            for (long i = 0; i < end; i++) {
                v[i] /= normalizer[i];
                form += v[i] * forward[i];
            }
            for (int s = 0; s < 2; s++) {
                long size = (s ? end : start[1]) - start[s];
                analyse(rate + start[s], v + start[s], sums, size, degree, lanes);
                from_rates(sums, coefficients, s ? -1 : 1, back, degree);
            }
            synthesise(position, back, value, end, degree);
            energy[k] = form;
            for (long i = 0; i < length; i++) {
                long at = place[i];
                both[k * length + i] = value[at] + forward[at] / normalizer[at];
            }
        }
        /* Each is from 1 to length, up to rounding, so the product of 16 is far from overflow. */
        for (long i = 0; i < length; i += 16) {
            double factors = 1;
            for (long j = i; j < length && j < i + 16; j++)
                factors *= normalizer[place[j]];
            total += log(factors);
        }
        lse[row] = peaks + total;
        vectors += count * length;
        both += count * length;
        energy += count;
    }
}
